import random
from itertools import combinations

import pytest

from mmsearch_trl.world.emblems import COLOURS, SHAPES, Emblem, draw, make_emblems, random_jitter


@pytest.mark.parametrize("seed", range(5))
def test_any_two_emblems_differ_in_two_attributes(seed: int) -> None:
    emblems = make_emblems(534, random.Random(seed))
    assert len(set(emblems)) == 534
    assert min(a.distance(b) for a, b in combinations(emblems, 2)) >= 2


def test_the_colours_of_an_emblem_are_distinct() -> None:
    for emblem in make_emblems(534, random.Random(0)):
        assert len({emblem.border, emblem.background, emblem.colour}) == 3


def test_more_emblems_than_the_code_holds_is_an_error() -> None:
    with pytest.raises(ValueError, match="1000 emblems"):
        make_emblems(1000, random.Random(0))


def test_every_attribute_shows_in_the_picture() -> None:
    pictures = {
        draw(Emblem(border, background, shape, colour), size).tobytes()
        for border, background, colour in ((0, 1, 2), (3, 1, 2), (0, 3, 2), (0, 1, 3))
        for shape in range(len(SHAPES))
        for size in (28, 56)
    }
    assert len(pictures) == 4 * len(SHAPES) * 2


def test_jitter_moves_the_inside_and_leaves_the_border_full() -> None:
    emblem = Emblem(0, 1, 2, 3)
    centred, moved = draw(emblem), draw(emblem, jitter=(2, -1))
    assert moved.size == centred.size == (56, 56)
    assert moved.crop((2, 0, 56, 55)).tobytes() == centred.crop((0, 1, 54, 56)).tobytes()
    assert {moved.getpixel((x, y)) for x in (0, 55) for y in range(56)} == {COLOURS[0]}


def test_a_jitter_that_would_leave_the_canvas_is_an_error() -> None:
    with pytest.raises(ValueError, match="out of range"):
        draw(Emblem(0, 1, 2, 3), jitter=(3, 0))


def test_random_jitter_is_one_or_two_pixels() -> None:
    rng = random.Random(0)
    assert {max(map(abs, random_jitter(rng))) for _ in range(200)} == {1, 2}
