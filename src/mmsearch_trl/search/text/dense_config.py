"""The section of the index by meaning, apart from it: reading a recipe must not import torch (`dense.py` does)."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mmsearch_trl.search.calls.section import Shared, TextConfig, named


if TYPE_CHECKING:
    from mmsearch_trl.search.text.dense import DenseIndex


@dataclass(frozen=True, kw_only=True)
class DenseConfig(TextConfig):
    """`search.text` with `backend: dense`."""

    paths = ("path",)

    backend: Literal["dense"] = field(
        default="dense", metadata={"help": "Passages by their meaning: nearest vectors, on this machine."}
    )
    path: str = field(metadata={"help": "Folder made by `mmsearch index dense`."})
    encoder: str | None = field(
        default=None, metadata={"help": "Its encoder, where that is not at the place the index remembers."}
    )

    def open(self, shared: Shared) -> "DenseIndex":
        from mmsearch_trl.search.text.dense import DenseIndex

        with named("search.text.path"):
            return DenseIndex.open(self.path, self.encoder)
