"""The critic in a checkpoint: the folder `critic/`, one file, or shards where FSDP2 shares the weights out.

The file is read without running any code that it may hold. Shards have PyTorch's own format, which is pickled, as have
those of the policy's optimizer: go on from sharded checkpoints of your own.
"""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException

from mmsearch_trl.core.boundaries import writing
from mmsearch_trl.core.errors import UserError


_FOLDER, _WHOLE, _SHARDS = "critic", "critic.pt", ".metadata"


def save_critic(state: dict[str, Any], checkpoint: Path, *, sharded: bool, is_main: bool) -> None:
    """Write tensors and numbers; every rank calls it.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = checkpoint / _FOLDER
    with writing(folder, RuntimeError):
        if sharded:
            dcp.save(state, checkpoint_id=folder)
        elif is_main:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(state, folder / _WHOLE)


def load_critic(state: dict[str, Any], checkpoint: Path, *, sharded: bool) -> None:
    """Read what was saved into the tensors of `state`, and put its numbers there.

    Raises:
        UserError: there is nothing of that, or it is of another model.
    """
    folder, file = checkpoint / _FOLDER, _SHARDS if sharded else _WHOLE
    if not (folder / file).is_file():
        raise UserError(
            f"resume_from_checkpoint: {checkpoint} holds no critic of such a run ({_FOLDER}/{file}): it was saved by "
            "a run without one, or one that shared it among processes otherwise, or is not complete"
        )
    try:
        if sharded:
            dcp.load(state, checkpoint_id=folder)
        else:
            _copy_into(state, torch.load(folder / file, map_location="cpu", weights_only=True))
    except (CheckpointException, ValueError, KeyError, RuntimeError, UnpicklingError, EOFError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"resume_from_checkpoint: the critic in {folder} cannot be loaded: {why}") from error


def _copy_into(state: dict[str, Any], found: Mapping[str, Any]) -> None:
    for name, value in state.items():
        if isinstance(value, dict):
            _copy_into(value, found[name])
        elif isinstance(value, torch.Tensor):
            value.copy_(found[name])
        else:
            state[name] = found[name]
