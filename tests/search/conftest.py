import random
from collections.abc import Callable

import pytest
from PIL import Image

from mmsearch_trl.world.emblems import draw, make_emblems


Picture = Callable[..., Image.Image]


@pytest.fixture(scope="session")
def emblem() -> Picture:
    """`emblem(number, size, jitter)`: one of 500 small flat images, any two of which differ in two attributes."""
    emblems = make_emblems(500, random.Random(7))

    def picture(number: int, size: int = 56, jitter: tuple[int, int] = (0, 0)) -> Image.Image:
        return draw(emblems[number], size, jitter)

    return picture
