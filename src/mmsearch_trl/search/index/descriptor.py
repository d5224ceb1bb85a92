"""An image as one vector, without any model: finds the same image again, however it was resized or compressed.

Three views of the image (whole, and 15 % and 30 % trimmed off) and their mirror images are each described by
* shape: histograms of oriented gradients, 8 directions in 8 x 8 soft cells, the strongest colour channel counting;
* colour: the mean YCbCr colour of 8 x 8 patches, absolute, so that flat images of different colours differ;
* structure: the signs of the 63 lowest cosine frequencies of the brightness, softened around zero.

The sum over the views is scaled to length one; summing makes the vector indifferent to mirroring and mild cropping.
It recognises near-duplicates only: another photo of the same thing is, to it, another image. For that, plug in a
trained encoder (`search/image/siglip.py`).

Source of the recipe: HOG (Dalal and Triggs 2005), MPEG-7 colour layout, perceptual hash.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image


FloatArray = NDArray[np.float32]

_SIDE = 64
_CELLS = 8
_DIRECTIONS = 8
_FREQUENCY_SIDE = 32
_TRIMS = (0.0, 0.15, 0.3)

_SHAPE_WEIGHT = 1.0
_COLOUR_WEIGHT = 0.7
_STRUCTURE_WEIGHT = 0.7

_SHAPE_FLOOR = 0.05
"""Gradient strength below which an image counts as flat, so that compression noise is not blown up to full weight."""


class Encoder(Protocol):
    """Turns images into unit vectors whose dot product is their likeness.

    `fingerprint` changes whenever the same image could get another vector: an index answers only queries encoded
    with the fingerprint that it was built with.
    """

    name: str
    fingerprint: str
    dim: int

    def encode(self, images: Sequence[Image.Image]) -> FloatArray:
        """RGB images, any sizes, to unit rows `(n, dim)`."""
        ...


class ImageDescriptor:
    """The model-free encoder: numpy and Pillow only, about 4 ms an image on one core."""

    name = "picture-descriptor"
    fingerprint = "picture-descriptor-1"  # indexes on people's disks bear it
    dim = _CELLS * _CELLS * _DIRECTIONS + 3 * _CELLS * _CELLS + 64 + 1

    def encode(self, images: Sequence[Image.Image]) -> FloatArray:
        return np.stack([_describe(image) for image in images]) if images else np.zeros((0, self.dim), np.float32)


def _describe(image: Image.Image) -> FloatArray:
    """An RGB image to its unit vector `(dim,)`."""
    views = _views(image)
    luma_chroma = views @ _TO_YCBCR - _MID_GREY
    vector = np.concatenate(
        [
            _SHAPE_WEIGHT * _shape(views),
            _COLOUR_WEIGHT * _colour(luma_chroma),
            _STRUCTURE_WEIGHT * _structure(luma_chroma[..., 0]),
            _CONSTANT,
        ],
        axis=1,
    ).sum(axis=0)
    return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)


def _views(image: Image.Image) -> FloatArray:
    """The image at three trims, then mirrored, RGB in [0, 1]: `(6, 64, 64, 3)`."""
    width, height = image.size
    views = []
    for trim in _TRIMS:
        x, y = width * trim / 2, height * trim / 2
        view = image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, box=(x, y, width - x, height - y))
        views.append(np.asarray(view, dtype=np.float32) / 255.0)
    stacked = np.stack(views)
    return np.concatenate([stacked, stacked[:, :, ::-1]])


def _shape(views: FloatArray) -> FloatArray:
    """Gradient histograms of `(v, 64, 64, 3)` images: `(v, 512)`, length at most one."""
    across = np.zeros_like(views)
    down = np.zeros_like(views)
    across[:, :, 1:-1] = views[:, :, 2:] - views[:, :, :-2]
    down[:, 1:-1] = views[:, 2:] - views[:, :-2]
    strongest = np.expand_dims((across**2 + down**2).argmax(axis=-1), -1)
    dx = np.take_along_axis(across, strongest, -1)[..., 0]
    dy = np.take_along_axis(down, strongest, -1)[..., 0]
    position = (np.arctan2(dy, dx) % np.pi) * (_DIRECTIONS / np.pi)
    # A gradient between two directions counts for both, by nearness; the last direction is next to the first.
    below = position.astype(np.intp)
    above_share, strength = position - below, np.hypot(dx, dy)
    directed = np.zeros((*position.shape, _DIRECTIONS), np.float32)
    at = np.indices(position.shape, sparse=True)
    directed[(*at, below % _DIRECTIONS)] = strength * (1.0 - above_share)
    directed[(*at, (below + 1) % _DIRECTIONS)] += strength * above_share
    rows = (_SOFT_CELLS @ directed.reshape(-1, _SIDE, _SIDE * _DIRECTIONS)).reshape(-1, _SIDE, _DIRECTIONS)
    cells = _SOFT_CELLS @ rows
    # The root evens out strong and weak edges, as the Hellinger kernel does.
    histogram = np.sqrt(cells).reshape(len(views), -1)
    return histogram / (np.linalg.norm(histogram, axis=1, keepdims=True) + _SHAPE_FLOOR * _CELLS)


def _colour(luma_chroma: FloatArray) -> FloatArray:
    """Mean colours of 8 x 8 patches of `(v, 64, 64, 3)` YCbCr images, centred: `(v, 192)`."""
    patch = _SIDE // _CELLS
    means = luma_chroma.reshape(-1, _CELLS, patch, _CELLS, patch, 3).mean(axis=(2, 4))
    return (means * _COLOUR_SCALE).reshape(len(luma_chroma), -1) / _CELLS


def _structure(luma: FloatArray) -> FloatArray:
    """Softened signs of the lowest cosine frequencies of `(v, 64, 64)` brightness: `(v, 64)`; the mean is left out."""
    halved = luma.reshape(len(luma), _FREQUENCY_SIDE, 2, _FREQUENCY_SIDE, 2).mean(axis=(2, 4))
    frequencies = (_COSINES @ halved @ _COSINES.T).reshape(len(luma), -1)
    frequencies[:, 0] = 0.0
    typical = np.median(np.abs(frequencies), axis=1, keepdims=True)
    return frequencies / (np.abs(frequencies) + typical + 0.05) / 8.0


def _soft_cells() -> FloatArray:
    """Triangular windows, one cell wide to either side, that share each pixel between the nearest cells: `(8, 64)`."""
    width = _SIDE / _CELLS
    centres = (np.arange(_CELLS) + 0.5) * width
    pixels = np.arange(_SIDE) + 0.5
    return np.clip(1.0 - np.abs(pixels[None] - centres[:, None]) / width, 0.0, None).astype(np.float32)


def _cosines() -> FloatArray:
    """The eight lowest rows of the orthonormal cosine transform of 32 samples: `(8, 32)`."""
    sample = np.arange(_FREQUENCY_SIDE) + 0.5
    rows = np.cos(np.pi * np.arange(8)[:, None] * sample / _FREQUENCY_SIDE) * np.sqrt(2.0 / _FREQUENCY_SIDE)
    rows[0] /= np.sqrt(2.0)
    return rows.astype(np.float32)


_SOFT_CELLS = _soft_cells()
_COSINES = _cosines()
_COLOUR_SCALE = np.array([1.0, 2.0, 2.0], dtype=np.float32)
_TO_YCBCR = np.array(
    [[0.299, -0.168736, 0.5], [0.587, -0.331264, -0.418688], [0.114, 0.5, -0.081312]], dtype=np.float32
)
_MID_GREY = np.array([0.5, 0.0, 0.0], dtype=np.float32)
# Without it, two flat images of one hue but different strength would point the same way, and mid grey nowhere.
_CONSTANT = np.full((2 * len(_TRIMS), 1), 0.25, dtype=np.float32)
