"""Weights as files that a vLLM server reads: one folder per version, which is there completely or not at all.

A version is written beside its place and then renamed. One process writes to a folder; the newest two versions stay,
so that a sampler that is still loading the last one is not disturbed.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import save_file

from mmsearch_trl.core.boundaries import writing
from mmsearch_trl.engine.weight_sync import adapter_weights


KEPT = 2
"""Versions in a folder, the one that is being written included."""

_SHARD_BYTES = 2 * 2**30
"""Size of a file of weights: the most that is held in memory beside the model."""

_SHARED_MEMORY = Path("/dev/shm")

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

    A run that was killed leaves its folder behind; the next one with the same run folder empties it.

    Raises:
        UserError: the run's folder cannot be written.

    Args:
        local: Whether every sampler runs on this machine, and so sees its shared memory.
        num_bytes: Size of one version. Shared memory is used when all versions take at most half of what is free.
    """
    folder = _in_shared_memory(run_folder, num_bytes) if local else None
    if folder is None:
        with writing(run_folder / "sync"):
            folder = _emptied(run_folder / "sync")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _in_shared_memory(run_folder: Path, num_bytes: int) -> Path | None:
    name = f"mmsearch-sync-{sha256(str(run_folder.resolve()).encode()).hexdigest()[:16]}"
    with suppress(OSError):
        folder = _emptied(_SHARED_MEMORY / name)
        # Everyone on the machine may read there, and weights are the run's own.
        folder.chmod(0o700)
        if shutil.disk_usage(folder).free >= 2 * KEPT * num_bytes:
            return folder
        folder.rmdir()
    return None


def _emptied(folder: Path) -> Path:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


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
