"""The rows that training and evaluation read, by a recipe."""

import logging
from collections.abc import Sequence

from accelerate import PartialState
from datasets import Dataset

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.dataset import check_without_images, drop_long_prompts, has_images, load_dataset_rows
from mmsearch_trl.data.rows import RowError
from mmsearch_trl.protocol.base import TurnProtocol
from mmsearch_trl.recipe.build import conversation_rules
from mmsearch_trl.recipe.recipe import Recipe


logger = logging.getLogger(__name__)


def load_rows(recipe: Recipe, files: Sequence[str], protocol: TurnProtocol) -> Dataset:
    """The rows of data files; one process prepares them, overlong prompts are left out where the recipe says so."""
    data = recipe.data
    with PartialState().main_process_first():
        try:
            rows = load_dataset_rows(list(files), on_error=data.on_bad_row, rules=conversation_rules(protocol))
        except RowError as error:
            raise UserError(f"{error} (`on_bad_row: skip` leaves bad rows out, and counts them)") from error
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
        return drop_long_prompts(
            rows,
            lambda task: len(protocol.prompt(task).token_ids),
            data.max_prompt_length,
            resize=data.resize_images,
        )
