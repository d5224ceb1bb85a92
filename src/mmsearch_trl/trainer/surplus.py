"""Groups of rollouts that a batch had too many of: the next one begins with them.

A checkpoint keeps them, pictures included, so that a resumed run trains on the same. They are pickled, and read by an
unpickler that knows the nouns of `core/` alone: a checkpoint of somebody else runs no code. Pictures lie beside, each
once.
"""

import hashlib
import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Groups:
    """Rollouts of one rank, those of a prompt next to each other: rows of the data, their images left out, and what
    became of them."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    trajectories: list[Trajectory] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> "Groups":
        return Groups(self.rows[part], self.trajectories[part])

    def __add__(self, other: "Groups") -> "Groups":
        return Groups(self.rows + other.rows, self.trajectories + other.trajectories)


@dataclass(slots=True)
class Surplus:
    """The groups that wait for the next batch."""

    groups: Groups = field(default_factory=Groups)


def packed(groups: Groups) -> dict[str, Any]:
    """Groups as plain values and tensors, for `torch.save`."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump((groups.rows, groups.trajectories))
    return {"groups": _as_tensor(file.getvalue()), "images": packer.images}


def unpacked(content: Mapping[str, Any]) -> Groups:
    """The groups that were packed.

    Raises:
        UserError: it holds something else.
    """
    file = io.BytesIO(content["groups"].numpy().tobytes())
    try:
        return Groups(*_Unpacker(file, content["images"]).load())
    except (pickle.UnpicklingError, EOFError, KeyError, AttributeError, ImportError) as error:
        raise UserError(f"the groups of rollouts that the checkpoint carries over cannot be read: {error}") from error


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.images: dict[str, tuple[str, tuple[int, int], torch.Tensor]] = {}

    def persistent_id(self, obj: Any) -> str | None:
        if not isinstance(obj, Image.Image):
            return None
        image = obj if obj.mode in ("L", "RGB", "RGBA") else obj.convert("RGBA")
        content = image.tobytes()
        name = hashlib.sha256(f"{image.mode}{image.size}".encode() + content).hexdigest()
        self.images[name] = (image.mode, image.size, _as_tensor(content))
        return name

    def reducer_override(self, obj: Any) -> Any:
        return (dict, (dict(obj),)) if isinstance(obj, MappingProxyType) else NotImplemented


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, images: Mapping[str, Any]) -> None:
        super().__init__(file)
        self._images = {
            name: Image.frombytes(mode, tuple(size), content.numpy().tobytes())
            for name, (mode, size, content) in images.items()
        }

    def persistent_load(self, pid: Any) -> Image.Image:
        return self._images[pid]

    def find_class(self, module: str, name: str, /) -> Any:
        if module.startswith("mmsearch_trl.core."):
            found = super().find_class(module, name)
            if isinstance(found, type) and (is_dataclass(found) or issubclass(found, Enum)):
                return found
        if (module, name) == ("builtins", "dict"):
            return dict
        raise pickle.UnpicklingError(f"{module}.{name} is none of what groups are made of")


def _as_tensor(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
