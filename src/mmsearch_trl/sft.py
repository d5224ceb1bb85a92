"""Supervised cold start: `accelerate launch -m mmsearch_trl.sft --config RECIPE [--key value ...]`.

Teaches a model the form of a search, on demonstrations, before reinforcement learning teaches it when to search. Data
files hold conversations (`data/demonstrations.py`) or the traces of a run, of which the right ones are used
(`data/demonstrations_from_traces.py`); without tools they hold traces or rows of messages
(`trainer/conversations.py`).
Demonstrations are put into tokens by the protocol that rollouts use, so that the model is taught the very tokens it
will meet; only what the assistant says is in the loss.
"""

import logging
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from rich.console import Console
from tqdm.auto import tqdm
from transformers import set_seed

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.interrupts import described
from mmsearch_trl.core.script import finish, run_script
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.data.config import OF_QUESTIONS, OF_ROWS
from mmsearch_trl.data.dataset import load_dataset_rows, row_to_task
from mmsearch_trl.data.demonstration_files import DemonstrationFile, holds_traces
from mmsearch_trl.data.images import resize_prompt_image
from mmsearch_trl.data.rows import OnError, RowError, SkippedRows
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.hub.push import check_login, pushing
from mmsearch_trl.protocol.base import SearchProtocol, TurnProtocol
from mmsearch_trl.recipe.build import build_protocol, keep_token_out_of_files, load_processor
from mmsearch_trl.recipe.command_line import recipe_arguments
from mmsearch_trl.recipe.data import load_rows, load_training_rows, reading_of
from mmsearch_trl.recipe.preflight import Preflight
from mmsearch_trl.recipe.recipe import Recipe, load_recipe
from mmsearch_trl.recipe.run_folder import record_run
from mmsearch_trl.recipe.start import load_start, new_adapter
from mmsearch_trl.trainer.checkpoint_folder import what_is_saved
from mmsearch_trl.trainer.conversations import Conversations
from mmsearch_trl.trainer.demonstrations import as_trajectory, collate
from mmsearch_trl.trainer.sft import MMSearchSFTConfig, MMSearchSFTTrainer


_OPENING = ("system_prompt", "template")

logger = logging.getLogger(__name__)


def main(config: Path, overrides: Mapping[str, Any]) -> None:
    """Carry out a recipe; `overrides` replace its values, by dotted key."""
    recipe = load_recipe(config, overrides, kind="sft")
    recipe.validate()
    Preflight(recipe).require()
    train(recipe)


def train(recipe: Recipe) -> MMSearchSFTTrainer:
    """Carry out a recipe that was validated."""
    out = Path(str(recipe.trainer.output_dir))
    with described(partial(what_is_saved, out)):
        trainer = build_trainer(recipe)
        args = trainer.args
        if PartialState().is_main_process:
            record_run(recipe, out)
        with trainer.preemption.on_sigterm():
            trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        # An internal call, for any other would push at once and everything would travel twice.
        trainer.save_model(args.output_dir, _internal_call=True)
        trainer.save_state()
        if args.push_to_hub:
            with pushing(str(out)):
                trainer.push_to_hub()
    if PartialState().is_main_process:
        name = shlex.quote(str(out))
        then = f"; to train it on: mmsearch train --config RECIPE --model_name_or_path {name}"
        line = f"saved: {out}{'' if recipe.model.use_peft else then}"
        Console(emoji=False).print(line, highlight=False, markup=False, soft_wrap=True)
    return trainer


def build_trainer(recipe: Recipe) -> MMSearchSFTTrainer:
    """Load everything that a recipe names and put the trainer together."""
    args, out = recipe.trainer, Path(str(recipe.trainer.output_dir))
    assert isinstance(args, MMSearchSFTConfig)
    set_seed(args.seed)
    keep_token_out_of_files(args)
    check_login(args)
    # The length at which TRL would cut; a conversation cut in an image is worth nothing, so it is left out whole.
    max_tokens = args.max_length if "max_length" in recipe.values else None
    args.max_length = None
    args.remove_unused_columns = False
    args.dataset_kwargs = {"skip_prepare_dataset": True}
    processor = load_processor(recipe.model)
    protocol = build_protocol(recipe, processor)
    demonstrations = demonstrations_of(recipe, protocol)
    if isinstance(demonstrations, Demonstrations):
        train_rows = demonstrations.usable(recipe.data.train_files, max_tokens, recipe.data.on_bad_row)
        eval_rows = demonstrations.usable(recipe.data.eval_files, max_tokens, recipe.data.on_bad_row)
    else:
        train_rows = demonstrations.usable("train", max_tokens)
        eval_rows = demonstrations.usable("eval", max_tokens) if recipe.data.eval_files else None
    return MMSearchSFTTrainer(
        load_start(recipe.model, out),
        args,
        train_dataset=train_rows,
        eval_dataset=eval_rows if recipe.data.eval_files else None,
        data_collator=demonstrations,
        processing_class=processor,
        peft_config=new_adapter(recipe.model),
    )


def demonstrations_of(recipe: Recipe, protocol: TurnProtocol) -> "Demonstrations | Conversations":
    """What a recipe's files hold: of a protocol without tools rows of messages, or the traces of runs.

    Raises:
        UserError: they hold both; or a key is of rows, and they are traces, or the other way round.
    """
    if isinstance(protocol, SearchProtocol):
        return Demonstrations(recipe, protocol)
    data = recipe.data
    traces = {file: holds_traces(file) for file in (*data.train_files, *data.eval_files)}
    if len(set(traces.values())) > 1:
        one, other = (next(file for file in traces if traces[file] is kind) for kind in (True, False))
        raise UserError(f"{recipe.path}: {one} holds traces and {other} rows: learn from one, and then from the other")
    if not any(traces.values()):
        if data.question_files:
            raise UserError(f"{recipe.path}: question_files belong to traces, and the files hold rows: take it out")
        return conversations(recipe, protocol)
    of_questions = (*OF_QUESTIONS, *_OPENING) if data.question_files else ()
    if of_rows := [key for key in (*OF_ROWS, *_OPENING) if key not in of_questions and recipe.values.get(key)]:
        raise UserError(f"{recipe.path}: {of_rows[0]} is of rows, and traces are read whole: take it out")
    return Demonstrations(recipe, protocol)


def conversations(recipe: Recipe, protocol: TurnProtocol) -> Conversations:
    """The rows of a recipe's files, for a protocol without tools."""
    data = recipe.data
    parts = {"train": load_training_rows(recipe, protocol, None, answered=True)}
    if data.eval_files:
        parts["eval"] = load_rows(recipe, data.eval_files, protocol, None, answered=True)
    return Conversations(parts, protocol.chat, resize=data.resize_images)


class Demonstrations:
    """The demonstrations of a recipe's files; as a collator it lays out rows `{"file", "index"}` of them."""

    def __init__(self, recipe: Recipe, protocol: TurnProtocol) -> None:
        self._recipe = recipe
        self._protocol = protocol
        self._files: dict[str, DemonstrationFile] = {}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        chat = self._protocol.chat
        return collate([self.trajectory(**row) for row in rows], chat, chat.tokenizer.pad_token_id)

    def trajectory(self, file: str, index: int) -> Trajectory:
        """One demonstration in the tokens of a rollout.

        Raises:
            RowError: it cannot be used.
        """
        source = self._source(file)
        try:
            demonstration = source[index]
            if self._recipe.data.resize_images:
                images = tuple(map(resize_prompt_image, demonstration.task.images))
                demonstration = replace(demonstration, task=replace(demonstration.task, images=images))
            return as_trajectory(demonstration, self._protocol)
        except RowError:
            raise
        except UserError as error:
            raise source.error(index, str(error)) from error

    def usable(self, files: Iterable[str], max_tokens: int | None, on_error: OnError) -> Dataset:
        """Read every demonstration once; the rows of those that can be used.

        Raises:
            RowError: one cannot be used, and `on_error` is "raise".
            UserError: none is left.
        """
        rows: list[dict[str, Any]] = []
        skipped, long = SkippedRows(), 0
        for file in files:
            source = self._source(file)
            for index in tqdm(range(len(source)), desc=f"Checking {Path(file).name}", unit="demonstration"):
                try:
                    length = len(self.trajectory(file, index).token_ids)
                except RowError as error:
                    if on_error == "raise":
                        raise
                    skipped.errors.append(error)
                    continue
                if max_tokens is None or length <= max_tokens:
                    rows.append({"file": file, "index": index})
                else:
                    long += 1
        skipped.log(len(rows))
        if long:
            logger.warning("left out %d demonstrations of more than max_length %s tokens", long, max_tokens)
        if files and not rows:
            raise UserError(f"no demonstration is left of {files}: {len(skipped)} bad, {long} over max_length")
        return Dataset.from_list(rows)

    def _source(self, file: str) -> DemonstrationFile:
        if file not in self._files:
            self._files[file] = source = DemonstrationFile(Path(file), self._original)
            logger.info("%s: %d demonstrations, %d traces not right", file, len(source), source.wrong)
        return self._files[file]

    def _original(self, task_id: str) -> Task | None:
        index = self._originals[1].get(task_id)
        return None if index is None else row_to_task(self._originals[0][index])

    @cached_property
    def _originals(self) -> tuple[Dataset, dict[str, int]]:
        """The rows of `question_files`, and where each id stands in them."""
        files = self._recipe.data.question_files
        reading = reading_of(self._recipe, self._protocol, None)
        rows = (
            load_dataset_rows(list(files), reading=reading, on_error="skip")
            if files
            else Dataset.from_dict({"id": []})
        )
        return rows, {task_id: index for index, task_id in enumerate(rows["id"])}


if __name__ == "__main__":
    status = run_script(lambda: main(*recipe_arguments()))
    if status == 0:
        Ranks().leave()
    finish(status)
