"""Runs that follow one another, each from what the former exported: `mmsearch stages`.

A stage is a process of its own, for neither vLLM nor the state of accelerate survives a second trainer. What it is
told stands in a recipe that extends the stage's own, in the folder of the stages (`2-mgt.yaml`), so that each can be
run by itself with `mmsearch train --config`.

* A stage that ended well is skipped; the one that was open goes on from its newest checkpoint.
* The next one starts from the former's export, which is looked at before a process is started.
* `stages.json` says what was done.
"""

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from mmsearch_trl.core.boundaries import reading, writing
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.redaction import redacted
from mmsearch_trl.models.location import ADAPTER, find_model
from mmsearch_trl.recipe.stage_list import Stage, Stages, output_of
from mmsearch_trl.recipe.written import read_written
from mmsearch_trl.trainer.checkpoint_folder import STATE, newest_complete


RECORD = "stages.json"
_LOCK = ".stages.lock"
_LOCK_SECONDS, _POLL_SECONDS = 120.0, 0.2
_START = ("model_name_or_path", "model_revision", "from_adapter")
_HOW_IT_BEGAN = (*_START, "overwrite_output_dir", "resume_from_checkpoint", "output_dir")
"""Keys that do not tell whether a finished stage is the one that is asked for."""

Run = Callable[[Sequence[str]], int]
"""Runs a command line of `mmsearch` to its end; its exit status, negative for the signal that ended it."""


def run_stages(stages: Stages, run: Run) -> None:
    """Carry them out, one after the other.

    Raises:
        UserError: a stage cannot begin, for a recipe or an export is wrong, or was ended by a signal of the system.
        SystemExit: a stage failed, and has said why.
    """
    with writing(stages.folder):
        stages.folder.mkdir(parents=True, exist_ok=True)
    with _alone(stages.folder):
        _Runner(stages, run).run()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process is at the stages of a folder, nor at one of them.

    A stage's process holds the lock, too: after the death of the one that started it, it is still saving.

    Raises:
        UserError: one was, and did not end within two minutes.
    """
    with (folder / _LOCK).open("w") as file:
        os.set_inheritable(file.fileno(), True)
        deadline, told = time.monotonic() + _LOCK_SECONDS, False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(f"{folder}: another process is at these stages: end it, or wait for it") from None
                if not told:
                    told = True
                    _say(f"another process is at the stages in {folder}: waiting for it to end")
                time.sleep(_POLL_SECONDS)
        yield


class _Runner:
    def __init__(self, stages: Stages, run: Run) -> None:
        self._folder, self._stages, self._run = stages.folder, stages.stages, run
        self._done: dict[str, dict[str, Any]] = self._read()

    def run(self) -> None:
        recipes = [self._folder / f"{number}-{stage.name}.yaml" for number, stage in enumerate(self._stages, start=1)]
        outs = [output_of(stage, self._folder) for stage in self._stages]
        for number, (stage, file, out) in enumerate(zip(self._stages, recipes, outs, strict=True), start=1):
            former = outs[number - 2] if number > 1 else None
            with writing(file):
                file.write_text(_recipe(stage, former, out), encoding="utf-8")
            read_written(file, kind=stage.kind)  # a mistake in the last stage is told before the first begins
        for number, (stage, file, out) in enumerate(zip(self._stages, recipes, outs, strict=True), start=1):
            title = f"stage {number} of {len(self._stages)}, {stage.name}"
            if self._is_done(stage, out):
                _say(f"{title}: done, in {out}")
                continue
            former = outs[number - 2] if number > 1 else None
            if former is not None:
                _check_export(f"{title}: it starts from what stage {self._stages[number - 2].name} exported", former)
                with writing(file):  # now that there is an export, it is known whether it is an adapter
                    file.write_text(_recipe(stage, former, out), encoding="utf-8")
            _say(f"{title}: {_start(stage, former)}")
            self._carry_out(title, stage, file, out, former)

    def _carry_out(self, title: str, stage: Stage, file: Path, out: Path, former: Path | None) -> None:
        began = time.time()
        entry = {
            "stage": stage.name,
            "recipe": stage.recipe,
            "output_dir": str(out),
            "started_from": str(former or stage.values.get("model_name_or_path")),
            "from_adapter": _way(stage, former),
        }
        self._record(entry | {"status": "begun", "began": _clock(began)})
        status = self._run(_command(stage, file))
        if status < 0:
            raise UserError(f"{title} was ended by signal {-status}: the same command goes on with it")
        if status:
            raise SystemExit(status)
        _check_export(f"{title}: it ended, and its export", out)
        ended = time.time()
        seconds = {"began": _clock(began), "ended": _clock(ended), "seconds": round(ended - began)}
        self._record(entry | {"status": "done"} | seconds)

    def _is_done(self, stage: Stage, out: Path) -> bool:
        """Whether there is nothing to be done of a stage.

        Raises:
            UserError: it is done with other keys than are asked for now, or its export is damaged.
        """
        recorded = self._done.get(stage.name, {})
        if recorded.get("status") == "done" and recorded.get("output_dir") == str(out):
            _check_export(
                f"stage {stage.name} is done, and its export (put it there again, or delete {out} and "
                f"{self._folder / RECORD} to train it anew)",
                out,
            )
        elif not (out / STATE).is_file() or (recorded and newest_complete(out) is not None):
            return False  # not begun, or open
        elif _problem(out) is not None:
            return False
        changed = _changed(stage, out)
        if changed:
            raise UserError(
                f"stage {stage.name} is done in {out}, with other keys than now ({', '.join(changed[:5])}): give it "
                f"another output_dir, or remove that one"
            )
        return True

    def _read(self) -> dict[str, dict[str, Any]]:
        file = self._folder / RECORD
        if not file.is_file():
            return {}
        with reading(file):
            text = file.read_text(encoding="utf-8")
        try:
            return {entry["stage"]: entry for entry in json.loads(text)["stages"]}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file} is damaged ({error}): remove it; stages that are done are found all the same"
            ) from error

    def _record(self, entry: dict[str, Any]) -> None:
        self._done[str(entry["stage"])] = redacted(entry)
        file = self._folder / RECORD
        with writing(file):
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps({"stages": list(self._done.values())}, indent=1), encoding="utf-8")
            partial.replace(file)


def _recipe(stage: Stage, former: Path | None, out: Path) -> str:
    """The recipe that a stage is carried out by, as text."""
    keys: dict[str, Any] = {"extends": stage.recipe, **stage.keys}
    keys |= {"output_dir": str(out), "resume_from_checkpoint": "auto", "overwrite_output_dir": False}
    if former is not None:
        keys |= {"model_name_or_path": str(former), "model_revision": "main", "from_adapter": _way(stage, former)}
    return f"# Stage {stage.name}, as `mmsearch stages` runs it.\n{yaml.safe_dump(keys, sort_keys=False)}"


def _way(stage: Stage, former: Path | None) -> str | None:
    """What becomes of the adapter that a stage starts from, where it is one: what the recipe says; else it is trained
    on where the stage trains an adapter, and merged where it trains all weights."""
    if former is None or not (former / ADAPTER).is_file():
        return stage.values.get("from_adapter")
    return stage.values.get("from_adapter") or ("continue" if stage.values.get("use_peft") else "merge")


def _start(stage: Stage, former: Path | None) -> str:
    """What a stage starts from, and what its KL term, if it has one, is measured against."""
    if former is None:
        return f"starts from {stage.values.get('model_name_or_path')}"
    way = _way(stage, former)
    if way is None:
        return f"starts from {former}, a whole model, which is also the reference of a KL term"
    if way == "continue":
        return (
            f"starts from {former}, a LoRA adapter that is trained on (from_adapter: continue); the reference of a KL "
            "term is that adapter as it is now"
        )
    return (
        f"starts from {former}, a LoRA adapter that is merged into its base model (from_adapter: merge); the "
        "reference of a KL term is the merged model"
    )


def _command(stage: Stage, file: Path) -> list[str]:
    processes = [] if stage.num_processes is None else ["--num_processes", str(stage.num_processes)]
    sharing = [] if stage.accelerate is None else ["--accelerate", str(stage.accelerate)]
    return ["sft" if stage.kind == "sft" else "train", "--config", str(file), *processes, *sharing]


def _check_export(what: str, folder: Path) -> None:
    problem = _problem(folder)
    if problem is not None:
        raise UserError(f"{what} is not whole: {problem}")


def _problem(folder: Path) -> str | None:
    """Why nothing can start from a run's folder; None where something can."""
    if not folder.is_dir():
        return f"there is no folder {folder}"
    try:
        find_model("the export", str(folder), hub=False)
    except UserError as error:
        return str(error)
    return None


def _changed(stage: Stage, out: Path) -> list[str]:
    """Keys of a stage that are not those of the run in its folder."""
    file = out / "recipe.yaml"
    if not file.is_file():
        return []
    with reading(file):
        recorded = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    now = yaml.safe_load(yaml.safe_dump(redacted(dict(stage.values))))
    keys = [key for key in sorted(recorded | now) if key not in _HOW_IT_BEGAN]
    return [key for key in keys if recorded.get(key) != now.get(key)]


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _say(line: str) -> None:
    Console(file=sys.stdout, emoji=False).print(line, highlight=False, markup=False, soft_wrap=True)
