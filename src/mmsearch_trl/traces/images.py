"""Images beside the traces: one small file per content, named by its digest, written at most once.

Every process of a run shares the folder. A file appears whole or not at all (written aside, then renamed), and two
processes that store the same image write the same bytes, so no lock is needed.
"""

import os
import re
from io import BytesIO
from pathlib import Path

from PIL import Image


MAX_SIDE = 384
"""Pixels of the longer side: enough to see what is in the image, few enough to put thousands into one page."""
LOSSLESS_SIDE = 96
"""Up to this longer side an image is kept as PNG: tiny images are tiny files and blur badly as JPEG."""
_DIGEST = re.compile(r"[0-9a-f]{8,64}")


class ImageStore:
    """A folder of reduced images by digest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stored: set[str] = set()

    def put(self, digest: str, image: Image.Image) -> None:
        """Store an image, reduced to `MAX_SIDE`, unless its digest is already there."""
        if digest in self._stored or self.find(digest):
            self._stored.add(digest)
            return
        suffix, content = _encode(image)
        path = self._path(digest, suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            aside.write_bytes(content)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)  # of a disk that is full, the part that fitted
        self._stored.add(digest)

    def find(self, digest: str) -> Path | None:
        """The file of a digest, or None if it was never stored; what is no digest is never looked up."""
        if not _DIGEST.fullmatch(digest):
            return None
        return next((path for suffix in ("jpg", "png") if (path := self._path(digest, suffix)).exists()), None)

    def _path(self, digest: str, suffix: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"image digest {digest!r} is not a hexadecimal SHA-256; use `image_digest`")
        return self.folder / digest[:2] / f"{digest}.{suffix}"


def _encode(image: Image.Image) -> tuple[str, bytes]:
    reduced = image.convert("RGB")
    reduced.thumbnail((MAX_SIDE, MAX_SIDE))
    content = BytesIO()
    if max(reduced.size) <= LOSSLESS_SIDE:
        reduced.save(content, "PNG", optimize=True)
        return "png", content.getvalue()
    reduced.save(content, "JPEG", quality=82)
    return "jpg", content.getvalue()
