import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
from PIL import Image

from mmsearch_trl.engine.images import ImageEncoder


FAMILIES = [family() for family in tiny.FAMILIES.values()]
RNG = random.Random(0)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_an_image_stands_for_as_many_tokens_as_the_processor_makes_of_it(family: tiny.Family) -> None:
    encoder = ImageEncoder(family.processor.image_processor)
    for size in ((28, 28), (90, 30), (64, 96), (300, 200)):
        image = encoder.encode(tiny.noise(*size, RNG))
        text = family.processor(images=[image.image], text="<|image_pad|>", return_tensors="pt")
        assert image.num_tokens == int((text["input_ids"] == family.processor.image_token_id).sum())
        assert encoder.features(image).pixel_values.equal(text["pixel_values"])


def test_the_same_picture_is_processed_once_however_often_it_comes() -> None:
    encoder = ImageEncoder(FAMILIES[0].processor.image_processor)
    image = tiny.noise(40, 50, RNG)
    keys = {encoder.encode(image.copy()).key for _ in range(5)}
    encoder.encode(image.convert("RGBA"))
    assert len(keys) == 1 and encoder.processed == 1
    encoder.encode(image.transpose(Image.Transpose.TRANSPOSE))
    assert encoder.processed == 2


def test_the_cache_forgets_what_was_used_longest_ago_and_makes_it_again() -> None:
    encoder = ImageEncoder(FAMILIES[0].processor.image_processor, capacity_bytes=60_000)
    images = [encoder.encode(tiny.noise(56, 56, RNG)) for _ in range(4)]
    first = encoder.features(images[0]).pixel_values
    assert encoder.processed > 4
    assert encoder.features(images[0]).pixel_values.equal(first)


def test_threads_may_share_an_encoder() -> None:
    encoder = ImageEncoder(FAMILIES[0].processor.image_processor)
    images = [tiny.noise(30 + i % 7, 40, random.Random(i % 7)) for i in range(70)]
    with ThreadPoolExecutor(8) as pool:
        inputs = list(pool.map(encoder.encode, images))
    assert len({image.key for image in inputs}) == 7
