"""The images an image index is built from: a folder, or a file with one image a row.

In a folder, a file's first bytes tell whether it is an image, and not its name: cameras and browsers write `.jfif`, or
no suffix at all. A file that is called an image and is none is a bad row; all else that is none is passed over, and
said. Names are compared in Unicode normal form C: some systems write them decomposed.
"""

import logging
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmsearch_trl.core.boundaries import reading
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.search.index.rows import BadRows, Row, usable
from mmsearch_trl.search.media.loading import load_image


logger = logging.getLogger(__name__)

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif"}
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8")
_LONGEST_PATH = 4096
_NAMED = 5
"""Of the files that are passed over, those that are named."""


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One entry to be: the image that is looked up, and what a search shows of it.

    Attributes:
        thumbnail: Another image to show in results; None shows the image itself.
        origin: `file` or `file:line`, for messages.
    """

    file: Path
    title: str
    url: str | None
    thumbnail: Path | None
    origin: str

    def load(self) -> tuple[Image.Image, Image.Image]:
        """The image to encode and the one to show.

        Raises:
            UserError: one of the files is no readable image.
        """
        image = self._open(self.file)
        return image, image if self.thumbnail is None else self._open(self.thumbnail)

    def _open(self, file: Path) -> Image.Image:
        try:
            return load_image(file)
        except UserError as error:
            raise UserError(f"{self.origin}: {error}") from error


def read_images(source: Path, captions: Path | None = None, bad: BadRows | None = None) -> list[ImageRow]:
    """List the images of `source`, in a fixed order.

    Args:
        source: A folder of images (searched whole; a title is the file's name unless a caption gives it), or a file
            of `{"image": path relative to the file, "title": str, "url"?: str, "thumbnail"?: path}`.
        captions: For a folder: a file of `{"image": path relative to the folder, "title": str, "url"?: str}`.
        bad: Gets the rows that cannot be used; by default the first is an error.

    Raises:
        UserError: a row is wrong, a caption names no image, or there is no image at all.
    """
    bad = bad or BadRows()
    if source.is_dir():
        images = list(_read_folder(source, captions, bad))
    elif captions is not None:
        raise UserError(f"captions {captions} go with a folder of images, and {source} is a file")
    else:
        images = list(usable(source, lambda row: _image(row, source.parent), bad))
    if not images:
        raise bad.nothing(source, "image")
    return images


def _read_folder(folder: Path, captions: Path | None, bad: BadRows) -> Iterator[ImageRow]:
    captioned: dict[str, Row] = {}
    if captions is not None:
        captioned = {_normal(name): row for name, row in usable(captions, lambda row: (row.text("image"), row), bad)}
    others = []
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        if file.suffix.lower() not in _SUFFIXES and not _starts_as_image(file):
            others.append(file.relative_to(folder).as_posix())
            continue
        row = captioned.pop(_normal(file.relative_to(folder).as_posix()), None)
        image = ImageRow(file, _normal(file.stem), None, None, str(file))
        try:
            image = image if row is None else _image(row, folder)
        except UserError as error:
            bad.add(error)
            continue
        yield image
    if others:
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        names = ", ".join(others[:_NAMED]) + more
        logger.warning("passed over %d files of %s that are no JPEG, PNG, WebP or GIF: %s", len(others), folder, names)
    for name, row in captioned.items():
        bad.add(row.error(f"no image {name[:200]!r} in {folder}"))


def _starts_as_image(file: Path) -> bool:
    with reading(file), file.open("rb") as opened:
        start = opened.read(12)
    return start.startswith(_STARTS) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")


def _image(row: Row, base: Path) -> ImageRow:
    thumbnail = row.text("thumbnail", "")
    return ImageRow(
        file=_file(row, "image", base),
        title=row.text("title"),
        url=row.text("url", "") or None,
        thumbnail=_file(row, "thumbnail", base) if thumbnail else None,
        origin=f"{row.file}:{row.line}",
    )


def _file(row: Row, key: str, base: Path) -> Path:
    """The file that a row names, whichever way its name is encoded on disk.

    Raises:
        UserError: what is there is no path.
    """
    name = row.text(key)
    if len(name) > _LONGEST_PATH or "\0" in name or name.startswith(("http://", "https://", "data:")):
        raise row.error(f"key {key!r} is no path of a file: {name[:80]!r}")
    names = (name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))
    try:
        return next((base / each for each in names if (base / each).exists()), base / name)
    except OSError as error:  # such as a name that is too long for a file's
        raise row.error(f"key {key!r} is no path of a file ({error.strerror}): {name[:80]!r}") from error


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)
