"""Weights as files that a vLLM server reads: one folder per version, which is there completely or not at all.

A version is written beside its place and then renamed. One process writes to a folder; the newest two versions stay,
so that a sampler that is still loading the last one is not disturbed.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import save_file

from mmsearch_trl.core.boundaries import writing
from mmsearch_trl.core.interrupts import removed_at_the_end
from mmsearch_trl.engine.weight_sync import adapter_weights


KEPT = 2
"""Versions in a folder, the one that is being written included."""

_SHARD_BYTES = 2 * 2**30
"""Size of a file of weights: the most that is held in memory beside the model."""

_SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "mmsearch-sync-"

_Write = Callable[[Path, Iterator[tuple[str, torch.Tensor]]], None]


@dataclass(frozen=True, slots=True)
class Sent:
    """A version of weights on its way.

    Attributes:
        path: The version's folder, the same on every rank.
        num_bytes: Size of its tensors.
    """

    path: Path
    num_bytes: int


def save_weights(
    weights: Iterable[tuple[str, torch.Tensor]], folder: Path, version: int, *, write: bool = True
) -> Sent:
    """Write full weights to `<folder>/<version>` in files of about 2 GB, as vLLM's `reload_weights` reads them.

    Args:
        weights: Read to its end, even when writing fails: gathering a weight is a call that all ranks make together.
        write: Whether this rank writes; the others take part in the gathering, and the version is there for them
            after a barrier.

    Raises:
        UserError: the version could not be written; nothing is there under its name.
    """
    return _save(weights, folder, version, write, lambda partial, tensors: _write_shards(tensors, partial))


def save_adapter(model: PeftModel, folder: Path, version: int, *, write: bool = True) -> Sent:
    """Write the active LoRA adapter, its tensors and its configuration, to `<folder>/<version>`, as vLLM loads it.

    Args:
        write: As for `save_weights`.

    Raises:
        UserError: vLLM cannot serve this adapter by itself.
        UserError: the version could not be written; nothing is there under its name.
    """

    def write_all(partial: Path, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
        save_file({name: _in_memory(tensor) for name, tensor in tensors}, partial / "adapter_model.safetensors")
        model.peft_config[model.active_adapters[0]].save_pretrained(str(partial))

    return _save(adapter_weights(model), folder, version, write, write_all)


@contextmanager
def sync_folder(run_folder: Path, *, local: bool, num_bytes: int) -> Iterator[Path]:
    """An empty folder for versions of weights, removed at the end: in shared memory, or `sync` in the run's folder.

    A process that was killed leaves its folder behind. The next one on the machine removes it from shared memory: a
    lock, which the system takes from the dead, tells who lives. One with the same run folder empties `sync`.

    Raises:
        UserError: the run's folder cannot be written.

    Args:
        local: Whether every sampler runs on this machine, and so sees its shared memory.
        num_bytes: Size of one version. Shared memory is used when all versions take at most half of what is free.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(_shared_memory_folder(num_bytes)) if local else None
        if folder is None:
            folder = run_folder / "sync"
            with writing(folder):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
            stack.enter_context(removed_at_the_end(partial(shutil.rmtree, folder, ignore_errors=True)))
        yield folder


@contextmanager
def _shared_memory_folder(num_bytes: int) -> Iterator[Path | None]:
    """A folder in shared memory, locked while it is there; None where it does not fit, or there is none."""
    folder = _SHARED_MEMORY / f"{_PREFIX}{uuid4().hex[:16]}"
    with ExitStack() as stack:
        try:
            _remove_dead()
            unlocked = folder.with_name(f".{folder.name}")  # not to be taken for that of a dead process
            unlocked.mkdir(mode=0o700)  # everyone on the machine may read there, and weights are the run's own
            stack.enter_context(removed_at_the_end(partial(shutil.rmtree, folder, ignore_errors=True)))
            stack.callback(os.close, _locked(unlocked))
            unlocked.rename(folder)
            fits = shutil.disk_usage(folder).free >= 2 * KEPT * num_bytes
        except OSError:
            fits = False
        if not fits:
            stack.close()
        yield folder if fits else None


def _remove_dead() -> None:
    """Remove the folders of processes that live no more: the system has taken their locks."""
    for folder in _SHARED_MEMORY.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            lock = _locked(folder)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _locked(folder: Path) -> int:
    """Lock a folder for as long as the descriptor that is returned is open.

    Raises:
        OSError: another process has it locked.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _save(
    tensors: Iterable[tuple[str, torch.Tensor]], folder: Path, version: int, write: bool, write_all: _Write
) -> Sent:
    sizes: list[int] = []

    def measured() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in tensors:
            sizes.append(_num_bytes(tensor))
            yield name, tensor

    stream = measured()
    final = folder / str(version)
    try:
        if write:
            with writing(final, SafetensorError), _new_version(folder, version) as partial:
                write_all(partial, stream)
    finally:
        for _ in stream:  # whatever happened here, other ranks wait for this one to gather the rest
            pass
    return Sent(final, sum(sizes))


@contextmanager
def _new_version(folder: Path, version: int) -> Iterator[Path]:
    """A folder to write to that becomes the version when all goes well, and disappears when it does not."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / str(version)
    _remove_old(folder, final)
    partial = folder / f".{version}"
    partial.mkdir()
    try:
        yield partial
        if final.exists():
            final.rename(folder / f".{version}.replaced")
        partial.rename(final)
    finally:
        for leftover in folder.glob(".*"):
            shutil.rmtree(leftover, ignore_errors=True)


def _remove_old(folder: Path, final: Path) -> None:
    """Leave room for one more version, and nothing of writers that were killed."""
    for leftover in folder.glob(".*"):
        shutil.rmtree(leftover)
    versions = sorted((path for path in folder.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
    others = [path for path in versions if path != final]
    for path in others[: max(0, len(others) - (KEPT - 1))]:
        shutil.rmtree(path)


def _write_shards(tensors: Iterator[tuple[str, torch.Tensor]], folder: Path) -> None:
    """One `model.safetensors`, or several files and the index that names them."""
    files: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}

    def write_shard() -> None:
        name = f"model-{len(set(files.values())) + 1:05}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        files.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, tensor in tensors:
        if shard and sum(map(_num_bytes, shard.values())) + _num_bytes(tensor) > _SHARD_BYTES:
            write_shard()
        shard[name] = _in_memory(tensor)
    write_shard()
    if len(set(files.values())) == 1:
        (folder / "model-00001.safetensors").rename(folder / "model.safetensors")
    else:
        index = {"metadata": {}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _num_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _in_memory(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()
