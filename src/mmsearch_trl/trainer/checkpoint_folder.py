"""Checkpoints of a run on disk: which of them a run can go on from, and which one `resume_from_checkpoint` means.

A process that was killed while it saved leaves a folder that looks like a checkpoint. `trainer_state.json` is written
last, when every process has written its part (`checkpoints.py`); the other files are looked at too, since a folder may
have been copied by half. Nothing is loaded: of weights the length that their header tells, of the rest the archive's
directory at its end.
"""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.models.location import whole_safetensors


# As `transformers.trainer` names them, which takes seconds to import.
STATE, OPTIMIZER, SCHEDULER = "trainer_state.json", "optimizer.pt", "scheduler.pt"

NEWEST = ("auto", "latest", "last")
"""What may stand for the newest complete checkpoint, beside `true`."""

_NAME = re.compile(r"checkpoint-(\d+)")
_WHOLE = ("model.safetensors", "adapter_model.safetensors")
_INDEX = "model.safetensors.index.json"
_OTHER_WEIGHTS = ("pytorch_model*", "adapter_model.bin", "global_step*")
"""Of FSDP, of other formats, of DeepSpeed, whose own folder holds the optimizer too."""


def checkpoint_to_resume(wanted: str | bool | None, run_dir: Path) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` means; None to begin at the first step.

    Args:
        wanted: A folder; True, `latest` or `last` for the newest complete checkpoint in `run_dir`; `auto` likewise, or
            None where the run was ended before it could save one, so that one command serves all of a run's life.

    Raises:
        UserError: there is no such checkpoint, or it is not complete.
    """
    if not wanted:
        return None
    if wanted is not True and wanted not in NEWEST:
        return _named(Path(wanted).expanduser())
    newest = newest_complete(run_dir)
    saved = [path for path in checkpoints(run_dir) if not _cut_off(path)]
    if newest is not None or (wanted == "auto" and not saved):
        return newest
    why = "".join(f"; {path.name}: {obstacle(path)}" for path in (saved or checkpoints(run_dir))[-1:])
    raise UserError(
        f"resume_from_checkpoint: there is no checkpoint in {run_dir} to go on from{why}"
        + ("" if saved else ". --resume_from_checkpoint auto begins at the first step where there is none")
    )


def _named(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"resume_from_checkpoint: there is no checkpoint in {folder}: no such folder")
    if checkpoints(folder) and not (folder / STATE).is_file():
        raise UserError(f"resume_from_checkpoint: {folder} is a run's folder: name one of the checkpoints in it")
    problem = obstacle(folder)
    if problem is not None:
        raise UserError(f"resume_from_checkpoint: there is no checkpoint in {folder} to go on from: {problem}")
    return folder


def newest_complete(run_dir: Path) -> Path | None:
    """The checkpoint of most steps that a run can go on from."""
    return next((path for path in reversed(checkpoints(run_dir)) if obstacle(path) is None), None)


def what_is_saved(run_dir: Path) -> str:
    """What an ended run may be gone on with, in words, and how."""
    newest = newest_complete(run_dir)
    saved = f"{newest} is saved" if newest is not None else "no step is saved"
    return f"{saved}; the same command with --resume_from_checkpoint auto goes on"


def checkpoints(run_dir: Path) -> list[Path]:
    """Folders named as checkpoints, complete or not, by their steps."""
    found = [path for path in run_dir.glob("checkpoint-*") if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))


def step_of(checkpoint: Path) -> int:
    """Optimizer steps taken; -1 where the file that tells them, the last to be written, is not whole."""
    state = _json(checkpoint / STATE)
    step = state.get("global_step") if isinstance(state, dict) else None
    return step if isinstance(step, int) else -1


def obstacle(checkpoint: Path) -> str | None:
    """Why a run cannot go on from a checkpoint; None where it can."""
    if _cut_off(checkpoint):
        return f"it has no whole {STATE}: its saving was cut off"
    sharded = any(checkpoint.glob("global_step*"))
    return _weights_obstacle(checkpoint) or (None if sharded else _optimizer_obstacle(checkpoint))


def _cut_off(checkpoint: Path) -> bool:
    return step_of(checkpoint) < 0


def _weights_obstacle(checkpoint: Path) -> str | None:
    names = [name for name in _WHOLE if (checkpoint / name).is_file()]
    if (checkpoint / _INDEX).is_file():
        index = _json(checkpoint / _INDEX)
        if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
            return f"{_INDEX} is damaged"
        names += sorted(set(index["weight_map"].values()))
    if not names and not any(path for pattern in _OTHER_WEIGHTS for path in checkpoint.glob(pattern)):
        return "it holds no weights"
    return next((f"{name} is damaged" for name in names if not whole_safetensors(checkpoint / name)), None)


def _optimizer_obstacle(checkpoint: Path) -> str | None:
    """Without these the optimizer would begin anew, and with it the learning rate, in the middle of a run."""
    places = (OPTIMIZER, "optimizer.bin", "optimizer_0")
    found = next((checkpoint / name for name in places if (checkpoint / name).exists()), None)
    scheduler = checkpoint / SCHEDULER
    if found is None or not scheduler.is_file():
        return (
            "it holds no optimizer and no learning rate (save_only_model), which would begin anew: give it as "
            "model_name_or_path to begin a new run from its weights"
        )
    for path in (found, scheduler):
        if path.is_file() and not zipfile.is_zipfile(path):
            return f"{path.name} is damaged"
    return None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
