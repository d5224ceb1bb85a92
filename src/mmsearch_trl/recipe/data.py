"""The rows that training and evaluation read, by a recipe."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

from accelerate import PartialState
from datasets import Dataset

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.answers import Scoring
from mmsearch_trl.data.dataset import check_without_images, drop_long_prompts, has_images, load_dataset_rows
from mmsearch_trl.data.mixture import mixed, mixed_length
from mmsearch_trl.data.opening import AS_WRITTEN, Opening
from mmsearch_trl.data.pixels import ModelPixels
from mmsearch_trl.data.reading import Reading
from mmsearch_trl.data.rows import RowError
from mmsearch_trl.data.sources import count_rows, find_source
from mmsearch_trl.protocol.base import TurnProtocol
from mmsearch_trl.recipe.build import conversation_rules
from mmsearch_trl.recipe.recipe import Recipe
from mmsearch_trl.rewards.rule import Rule


logger = logging.getLogger(__name__)


def load_training_rows(
    recipe: Recipe, protocol: TurnProtocol, rule: Rule | None, *, answered: bool = False
) -> Dataset:
    """Rows to train on: those of all files, or drawn from each by its share; at most so many as the recipe says.

    Args:
        rule: Says which gold answers it can score; None where nothing is scored by a rule.
        answered: Conversations are demonstrations, which end with what the assistant says.
    """
    data = recipe.data
    reading = replace(reading_of(recipe, protocol, rule, answered=answered), most_rows=data.max_samples_per_file)
    if data.mixture is None:
        rows = _load(recipe, data.train_files, protocol, reading)
    else:
        parts = [_load(recipe, [file], protocol, reading) for file in data.train_files]
        rows = mixed(parts, data.mixture, recipe.trainer.seed)
        _say("mixture: %d rows of %s", len(rows), ", ".join(f"{len(part):,}" for part in parts))
    if data.max_samples is not None and len(rows) > data.max_samples:
        _say("max_samples: the first %d of %d rows", data.max_samples, len(rows))
        rows = rows.select(range(data.max_samples))
    own = _with_opening_of_their_own(rows, reading.opening)
    if own == len(rows):
        raise UserError(
            "system_prompt, template: each row begins with a system message of its own, and says all of it itself: "
            "take the keys out"
        )
    return rows


def count_training_rows(recipe: Recipe) -> int | None:
    """Rows of `load_training_rows`, bad and overlong ones included; None where they cannot be counted before they are
    read, which reading tells."""
    data = recipe.data
    try:
        counts = [count_rows(find_source(file, streaming=data.streaming)) for file in data.train_files]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts):
            return None
        of_files = [min(count, data.max_samples_per_file or count) for count in known]
        rows = sum(of_files) if data.mixture is None else mixed_length(of_files, data.mixture, recipe.trainer.seed)
    except UserError:
        return None
    return min(rows, data.max_samples or rows)


def load_rows(
    recipe: Recipe, files: Sequence[str], protocol: TurnProtocol, rule: Rule | None, *, answered: bool = False
) -> Dataset:
    """All rows of data files; see `load_training_rows`."""
    reading = reading_of(recipe, protocol, rule, answered=answered)
    rows = _load(recipe, files, protocol, reading)
    _with_opening_of_their_own(rows, reading.opening)
    return rows


def reading_of(recipe: Recipe, protocol: TurnProtocol, rule: Rule | None, *, answered: bool = False) -> Reading:
    """How a recipe has its rows read, for the model that the protocol encodes for and the rule that scores them."""
    pixels = protocol.chat.images.pixels
    scoring = Scoring(needed=False, as_words=False)
    if rule is not None:
        unusable = None if rule.compares_words else rule.unusable
        scoring = Scoring(
            needed=rule.needs_answers,
            as_words=rule.compares_words,
            unusable=unusable,
            check_columns=rule.check_columns,
            fingerprint=rule.name,
        )
    model_pixels = None if pixels is None else ModelPixels(*pixels)
    rules = conversation_rules(protocol)
    return recipe.data.reading(model_pixels, rules and replace(rules, answered=answered), scoring)


def _with_opening_of_their_own(rows: Dataset, opening: Opening) -> int:
    """How many rows a system prompt or a template of the recipe's does not change; they are logged."""
    if opening == AS_WRITTEN:
        return -1
    begun = (messages[0] for messages in cast("Iterable[list[Any]]", rows["messages"]))
    own = sum(first["role"] == "system" and first["content"] != [opening.system] for first in begun)
    if own:
        _say("system_prompt, template: %d of %d rows have a system message of their own, and keep it", own, len(rows))
    return own


def _load(recipe: Recipe, files: Sequence[str], protocol: TurnProtocol, reading: Reading) -> Dataset:
    """One process prepares them; overlong prompts are left out where the recipe says so."""
    data = recipe.data
    with PartialState().main_process_first():
        try:
            rows = load_dataset_rows(list(files), reading=reading, on_error=data.on_bad_row)
        except RowError as error:
            raise UserError(f"{error} (`on_bad_row: skip` leaves bad rows out, and counts them)") from error
        if reading.most_rows is not None:
            _say("max_samples_per_file: at most %d rows of each of %s", reading.most_rows, ", ".join(files))
        if not protocol.chat.sees_images:
            check_without_images(rows, files)
        elif PartialState().is_main_process and recipe.search.image is not None and not has_images(rows):
            logger.warning(
                "%s: none of the %d questions has an image, though the recipe searches by image: is it a key `image` "
                "that the rows lack? (docs/data.md)",
                ", ".join(files),
                len(rows),
            )
        if data.max_prompt_length is None:
            return rows
        answered = reading.rules is not None and reading.rules.answered
        return drop_long_prompts(
            rows,
            lambda task: len(protocol.prompt(replace(task, messages=task.messages[: -answered or None])).token_ids),
            data.max_prompt_length,
            resize=data.resize_images,
        )


def _say(text: str, *values: object) -> None:
    if PartialState().is_main_process:
        logger.info(text, *values)
