"""What a run leaves in its folder: the records of one run alone.

A new run is refused where an earlier one left something, unless it may be overwritten; a resumed run drops what was
recorded after the checkpoint that it goes on from, for it records that again.
"""

import logging
import re
import shutil
from pathlib import Path

from mmsearch_trl.core.boundaries import writing
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.traces.files import forget_steps_from
from mmsearch_trl.trainer.checkpoint_folder import STATE, checkpoints, obstacle, step_of


_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*", "adapter_model.bin")
_RECORDS = (
    *_WEIGHTS,
    *("checkpoint-*", "abandoned-checkpoint-*", "traces", "evaluation", "completions", "sync", "merged_start"),
    *(STATE, "adapter_config.json", "trajectories.html", "learning.png"),
)
"""What is not written anew in any case; a user's own files stay."""

_EVALUATED_STEP = re.compile(r".*_step(\d+)_\d+\.json")

logger = logging.getLogger(__name__)


def check_unused(run_dir: Path, checkpoint: Path | None, *, resume: bool, overwrite: bool, model: str = "") -> None:
    """Refuse to mix a run with what an earlier one left.

    Args:
        checkpoint: What the run goes on from.
        resume: Whether it was told to go on: then it may follow a run that was ended before its first checkpoint.
        overwrite: Whether what is there may go.
        model: Where the run takes its model from.

    Raises:
        UserError: the folder holds another run, or overwriting it would remove what the run starts from.
    """
    if overwrite:
        for start in (checkpoint, Path(model) if model else None):
            if start is not None and start.exists() and _within(start, run_dir):
                raise UserError(
                    f"overwrite_output_dir: {run_dir} holds {start}, which the run starts from: name another folder"
                )
        return
    left = _left(run_dir)
    if left is None or (checkpoint is not None and _within(checkpoint, run_dir)):
        return
    if checkpoint is None and resume and not _finished(run_dir):
        return
    raise UserError(
        f"output_dir: {run_dir} holds a run already ({left}): name another output_dir, or go on with "
        "--resume_from_checkpoint auto, or give --overwrite_output_dir to remove it"
    )


def begin_records(run_dir: Path, checkpoint: Path | None, *, overwrite: bool) -> None:
    """Bring the folder to where the run begins, after `check_unused`.

    Checkpoints of later steps belong to a course that the run does not take again: they are set aside.
    """
    with writing(run_dir):
        if overwrite:
            for path in [path for pattern in _RECORDS for path in run_dir.glob(pattern)]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        step = step_of(checkpoint) if checkpoint is not None and _within(checkpoint, run_dir) else 0
        for path in checkpoints(run_dir):
            if step_of(path) > step or obstacle(path) is not None:
                _set_aside(path)
        for split in forget_steps_from(run_dir, step):
            # Of an evaluation that was broken off: its rows would count as done, and have no traces any more.
            shutil.rmtree(run_dir / "evaluation" / f"{split}.parts", ignore_errors=True)
        for rows in (run_dir / "evaluation").glob("*.json"):
            evaluated = _EVALUATED_STEP.fullmatch(rows.name)
            if evaluated is not None and int(evaluated[1]) > step:
                rows.unlink()


def _set_aside(checkpoint: Path) -> None:
    problem = obstacle(checkpoint)
    if step_of(checkpoint) < 0:
        shutil.rmtree(checkpoint)
        logger.warning("%s is removed: %s", checkpoint, problem)
        return
    aside = checkpoint.with_name(f"abandoned-{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)
    why = problem or "it is later than the one that the run goes on from"
    logger.warning("%s is now %s: %s", checkpoint, aside.name, why)


def _left(run_dir: Path) -> str | None:
    """What an earlier run left, in words; None where there is nothing of it."""
    saved = checkpoints(run_dir)
    if saved:
        return saved[-1].name
    if _finished(run_dir):
        return "a trained model"
    traces = (path for path in (run_dir / "traces").glob("train-rank*.jsonl") if path.stat().st_size)
    return "traces" if any(traces) else None


def _finished(run_dir: Path) -> bool:
    return any(path for pattern in (*_WEIGHTS, STATE) for path in run_dir.glob(pattern))


def _within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
