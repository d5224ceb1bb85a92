"""Emblems: small flat images with four attributes (border, background, shape, shape colour).

Any two emblems of a set differ in at least two attributes, so that no single feature tells two of them apart by
accident and an image search has a margin. The set is a code of distance two: the border's number is a linear
function of the other three whose coefficients are invertible modulo ten, hence a change of one attribute alone always
leaves the code. Each seed permutes the numbering of every attribute, so the relation is not the same in two worlds.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw


QUERY_SIZE = 56
"""Side of the image in a question, pixels: 16 patches of 14, merged into 4 image tokens."""
THUMBNAIL_SIZE = 28
"""Side of the image in a search result, pixels: 1 image token."""
MAX_JITTER = 2
"""Largest shift of a query image in either direction, pixels."""

COLOURS: tuple[tuple[int, int, int], ...] = (
    (214, 39, 40),
    (31, 90, 200),
    (44, 150, 44),
    (250, 210, 40),
    (20, 20, 20),
    (245, 245, 245),
    (130, 50, 160),
    (255, 127, 14),
    (60, 200, 220),
    (240, 130, 190),
)

_SUPERSAMPLING = 4


@dataclass(frozen=True, slots=True)
class Emblem:
    """Four attributes: indices into `COLOURS` (three different ones) and into `SHAPES`."""

    border: int
    background: int
    shape: int
    colour: int

    def distance(self, other: "Emblem") -> int:
        """Number of attributes, 0 to 4, in which the two differ."""
        same = self.border == other.border, self.background == other.background
        return 4 - sum((*same, self.shape == other.shape, self.colour == other.colour))


Pen = Callable[[ImageDraw.ImageDraw, float, float, float, tuple[int, int, int]], None]


def _polygon(*corners: tuple[float, float]) -> Pen:
    """A pen that fills the polygon with these corners, in units of the shape's half width around its centre."""

    def fill(draw: ImageDraw.ImageDraw, x: float, y: float, half: float, colour: tuple[int, int, int]) -> None:
        draw.polygon([(x + half * dx, y + half * dy) for dx, dy in corners], fill=colour)

    return fill


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, half: float, colour: tuple[int, int, int]) -> None:
    draw.ellipse((x - half, y - half, x + half, y + half), fill=colour)


def _ring(draw: ImageDraw.ImageDraw, x: float, y: float, half: float, colour: tuple[int, int, int]) -> None:
    draw.ellipse((x - half, y - half, x + half, y + half), outline=colour, width=round(half * 0.45))


_ARM = 0.36
SHAPES: tuple[Pen, ...] = (
    _disc,
    _ring,
    _polygon((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    _polygon((0, -1), (1, 0.9), (-1, 0.9)),
    _polygon((0, 1), (1, -0.9), (-1, -0.9)),
    _polygon((0, -1.1), (0.75, 0), (0, 1.1), (-0.75, 0)),
    _polygon(
        *((-_ARM, -1.0), (_ARM, -1.0), (_ARM, -_ARM), (1.0, -_ARM), (1.0, _ARM), (_ARM, _ARM)),
        *((_ARM, 1.0), (-_ARM, 1.0), (-_ARM, _ARM), (-1.0, _ARM), (-1.0, -_ARM), (-_ARM, -_ARM)),
    ),
    _polygon((-1.1, -0.45), (1.1, -0.45), (1.1, 0.45), (-1.1, 0.45)),
)


def make_emblems(count: int, rng: random.Random) -> list[Emblem]:
    """Make `count` different emblems in random order, any two at least two attributes apart.

    Raises:
        UserError: the code has fewer emblems than asked for (about 570 exist).
    """
    values = range(len(COLOURS))
    for _ in range(20):
        borders, backgrounds, shapes, colours = (rng.sample(values, len(COLOURS)) for _ in range(4))
        code = [
            Emblem(borders[(backgrounds[b] + 3 * shapes[s] + 7 * colours[c]) % len(COLOURS)], b, s, c)
            for b in values
            for s in range(len(SHAPES))
            for c in values
        ]
        emblems = [e for e in code if len({e.border, e.background, e.colour}) == 3]
        if len(emblems) >= count:
            return rng.sample(emblems, count)
    raise ValueError(f"{count} emblems that differ in two attributes were asked for; fewer than that exist")


def draw(emblem: Emblem, size: int = QUERY_SIZE, jitter: tuple[int, int] = (0, 0)) -> Image.Image:
    """Draw an emblem as an RGB image of `size` x `size` pixels, its inside shifted by `jitter` (right, down).

    The border keeps filling the image when the inside moves, as in a photograph that is cut a little off centre.
    """
    x, y = MAX_JITTER - jitter[0], MAX_JITTER - jitter[1]
    if not (0 <= x <= 2 * MAX_JITTER and 0 <= y <= 2 * MAX_JITTER):
        raise ValueError(f"jitter {jitter} is out of range: at most {MAX_JITTER} pixels in each direction")
    return _canvas(emblem, size).crop((x, y, x + size, y + size))


def random_jitter(rng: random.Random) -> tuple[int, int]:
    """A shift of 1 to `MAX_JITTER` pixels (the larger of the two directions)."""
    while True:
        jitter = rng.randint(-MAX_JITTER, MAX_JITTER), rng.randint(-MAX_JITTER, MAX_JITTER)
        if jitter != (0, 0):
            return jitter


@lru_cache(maxsize=4096)
def _canvas(emblem: Emblem, size: int) -> Image.Image:
    """The emblem with a margin of `MAX_JITTER` pixels, from which every shifted image is cut."""
    side = size + 2 * MAX_JITTER
    big = Image.new("RGB", (side * _SUPERSAMPLING, side * _SUPERSAMPLING), COLOURS[emblem.border])
    pen = ImageDraw.Draw(big)
    centre, unit = big.width / 2, size * _SUPERSAMPLING
    inside = 0.36 * unit
    pen.rectangle((centre - inside, centre - inside, centre + inside, centre + inside), COLOURS[emblem.background])
    SHAPES[emblem.shape](pen, centre, centre, 0.24 * unit, COLOURS[emblem.colour])
    return big.reduce(_SUPERSAMPLING)
