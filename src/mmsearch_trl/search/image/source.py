"""The images an image index is built from: a folder, or a JSONL with one image a line."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.search.index.rows import Row, read_rows
from mmsearch_trl.search.media.loading import load_image


_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif"}


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


def read_images(source: Path, captions: Path | None = None) -> list[ImageRow]:
    """List the images of `source`, in a fixed order.

    Args:
        source: A folder of images (searched whole; a title is the file's name unless a caption gives it), or a JSONL
            of `{"image": path relative to the JSONL, "title": str, "url"?: str, "thumbnail"?: path}`.
        captions: For a folder: a JSONL of `{"image": path relative to the folder, "title": str, "url"?: str}`.

    Raises:
        UserError: a row is wrong, a caption names no image, or there is no image at all.
    """
    if source.is_dir():
        images = list(_read_folder(source, captions))
    elif captions is not None:
        raise UserError(f"captions {captions} go with a folder of images, and {source} is a file")
    else:
        images = [_image(row, source.parent) for row in read_rows(source)]
    if not images:
        raise UserError(f"{source}: no image was found (folders are searched for {', '.join(sorted(_SUFFIXES))})")
    return images


def _read_folder(folder: Path, captions: Path | None) -> Iterator[ImageRow]:
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in _SUFFIXES and f.is_file())
    captioned = {} if captions is None else {row.text("image"): row for row in read_rows(captions)}
    for file in files:
        name = file.relative_to(folder).as_posix()
        row = captioned.pop(name, None)
        if row is None:
            yield ImageRow(file, file.stem, None, None, str(file))
        else:
            yield _image(row, folder)
    for row in captioned.values():
        raise row.error(f"no image {row.text('image')!r} in {folder}")


def _image(row: Row, base: Path) -> ImageRow:
    thumbnail = row.text("thumbnail", "")
    return ImageRow(
        file=base / row.text("image"),
        title=row.text("title"),
        url=row.text("url", "") or None,
        thumbnail=base / thumbnail if thumbnail else None,
        origin=f"{row.file}:{row.line}",
    )
