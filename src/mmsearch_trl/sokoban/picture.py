"""Frames: a level as one sees it, drawn in flat colours. A player on a target stands within its ring."""

from collections.abc import Callable, Mapping

from PIL import Image, ImageDraw

from mmsearch_trl.sokoban.level import Cell, Cells


HEIGHT = 640
"""Of a frame, in pixels, nearly: cells are whole pixels wide."""

_MORTAR, _BRICK, _FLOOR, _TARGET = (92, 84, 78), (150, 128, 112), (236, 229, 215), (205, 60, 60)
_WOOD, _EDGE, _DONE, _BODY, _EYE = (196, 134, 62), (112, 70, 26), (98, 160, 84), (52, 98, 178), (250, 250, 250)


def frame(fixed: Cells, seen: Cells) -> Image.Image:
    """Draw what is seen of a level."""
    rows, columns = seen.shape
    side = HEIGHT // rows
    image = Image.new("RGB", (columns * side, rows * side), _FLOOR)
    draw = ImageDraw.Draw(image)
    for row in range(rows):
        for column in range(columns):
            box = (column * side, row * side, (column + 1) * side - 1, (row + 1) * side - 1)
            if fixed[row, column] == Cell.TARGET:
                _target(draw, box)
            _DRAWN.get(Cell(int(seen[row, column])), _nothing)(draw, box)
    return image


_Box = tuple[int, int, int, int]


def _nothing(draw: ImageDraw.ImageDraw, box: _Box) -> None:
    pass


def _wall(draw: ImageDraw.ImageDraw, box: _Box) -> None:
    left, top, right, bottom = box
    draw.rectangle(box, fill=_MORTAR)
    course, gap = (bottom - top + 1) / 3, max(1, (bottom - top) // 30)
    for number in range(3):
        high, low = top + round(number * course) + gap, top + round((number + 1) * course) - gap
        middle = left + (right - left) * (1 + number % 2) // 3
        draw.rectangle((left + gap, high, middle - gap, low), fill=_BRICK)
        draw.rectangle((middle + gap, high, right - gap, low), fill=_BRICK)


def _target(draw: ImageDraw.ImageDraw, box: _Box) -> None:
    draw.ellipse(_within(box, 0.1), outline=_TARGET, width=max(2, (box[2] - box[0]) // 12))


def _crate(colour: tuple[int, int, int]) -> Callable[[ImageDraw.ImageDraw, _Box], None]:
    def draw_crate(draw: ImageDraw.ImageDraw, box: _Box) -> None:
        left, top, right, bottom = inner = _within(box, 0.1)
        width = max(2, (right - left) // 12)
        draw.rectangle(inner, fill=colour, outline=_EDGE, width=width)
        draw.line((left, top, right, bottom), fill=_EDGE, width=width)
        draw.line((left, bottom, right, top), fill=_EDGE, width=width)

    return draw_crate


def _player(draw: ImageDraw.ImageDraw, box: _Box) -> None:
    draw.ellipse(_within(box, 0.22), fill=_BODY)
    left, top, right, _ = box
    eye = (right - left) // 12
    for share in (0.38, 0.62):
        x, y = left + round((right - left) * share), top + round((right - left) * 0.42)
        draw.ellipse((x - eye, y - eye, x + eye, y + eye), fill=_EYE)


def _within(box: _Box, share: float) -> _Box:
    left, top, right, bottom = box
    inset = round((right - left) * share)
    return left + inset, top + inset, right - inset, bottom - inset


_DRAWN: Mapping[Cell, Callable[[ImageDraw.ImageDraw, _Box], None]] = {
    Cell.WALL: _wall,
    Cell.BOX: _crate(_WOOD),
    Cell.BOX_ON_TARGET: _crate(_DONE),
    Cell.PLAYER: _player,
}
