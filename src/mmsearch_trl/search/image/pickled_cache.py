"""Reads the official FVQA cache pickles without running what a pickle may hold.

The files are `{data_id: {"tool_returned_web_title_list": [str], "tool_returned_images_urls": [str or PIL image]}}`.
A pickle can name any function to call; here it can name two classes only, Pillow's JPEG and PNG files, and gets a
stand-in for both. That also frees the file from the Pillow version that wrote it: the stand-in takes the pickled state
(info, mode, size, palette, pixels, ...) and rebuilds the image from its pixels.
"""

import pickle
from pathlib import Path
from typing import Any

from PIL import Image

from mmsearch_trl.core.boundaries import reading
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.search.media.loading import MAX_PIXELS, load_image


TITLES, IMAGES = "tool_returned_web_title_list", "tool_returned_images_urls"

_IMAGE_CLASSES = {("PIL.JpegImagePlugin", "JpegImageFile"), ("PIL.PngImagePlugin", "PngImageFile")}


class PickledImage:
    """Stands in for a Pillow image in a pickle: keeps its state and touches nothing until asked."""

    _state: Any = None
    """A pickle may leave it out."""

    def __setstate__(self, state: Any) -> None:
        self._state = state

    def rebuild(self) -> Image.Image | None:
        """The RGB image, or None where the state makes none."""
        match self._state:
            case [_, str(mode), [int(width), int(height)], palette, bytes(pixels), *_]:
                pass
            case _:
                return None
        if width <= 0 or height <= 0 or width * height > MAX_PIXELS:
            return None
        try:
            image = Image.frombytes(mode, (width, height), pixels)
            if palette and mode in ("P", "PA"):
                image.putpalette(palette)
        except Exception:  # mode, pixels and palette are a stranger's, and Pillow's decoders raise almost anything
            return None
        try:
            return load_image(image)
        except UserError:
            return None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) in _IMAGE_CLASSES:
            return PickledImage
        raise pickle.UnpicklingError(f"it refers to {module_name}.{global_name}, which no FVQA cache needs")


def read_pickle(path: Path) -> dict[str, dict[str, list[Any]]]:
    """The rows of a cache file by data id.

    Raises:
        UserError: the file cannot be read, names a forbidden global, or holds something else than a cache.
    """
    with reading(path), path.open("rb") as file:
        try:
            rows = _Unpickler(file).load()
        except Exception as error:  # a damaged pickle makes the unpickler raise nearly anything
            raise UserError(f"{path} is not read as an FVQA cache: {error or type(error).__name__}") from error
    if not isinstance(rows, dict):
        raise UserError(f"{path} holds {type(rows).__name__} where an FVQA cache holds a dict of data ids")
    for name, row in rows.items():
        _check_row(path, name, row)
    return rows


def _check_row(path: Path, name: Any, row: Any) -> None:
    if not isinstance(name, str):
        raise UserError(f"{path}: the data id {name!r} is {type(name).__name__}, not text")
    for key in (TITLES, IMAGES):
        if not isinstance(row, dict) or not isinstance(row.get(key), list):
            raise UserError(f"{path}: {name!r} has no list {key!r}")
