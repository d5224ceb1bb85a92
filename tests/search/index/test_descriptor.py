import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from mmsearch_trl.search.index.descriptor import FloatArray, ImageDescriptor


ENCODER = ImageDescriptor()
COUNT = 500


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


@pytest.fixture(scope="module")
def emblem_vectors(emblem: Callable[..., Image.Image]) -> FloatArray:
    return ENCODER.encode([emblem(i) for i in range(COUNT)])


def scene(seed: int) -> Image.Image:
    """A smooth random image with some texture, as a photograph has."""
    rng = np.random.default_rng(seed)
    coarse, fine = (
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize((320, 240)) for side in (10, 70)
    )
    return Image.blend(coarse, fine, 0.25)


@pytest.fixture(scope="module")
def scene_vectors() -> FloatArray:
    return ENCODER.encode([scene(i) for i in range(60)])


def test_vectors_have_length_one_and_repeat_exactly(emblem: Callable[..., Image.Image]) -> None:
    flat = [Image.new("RGB", (1, 1), colour) for colour in ("black", "white", (128, 128, 128))]
    images = [emblem(0), scene(0), *flat, Image.new("RGB", (500, 2), "red")]
    vectors = ENCODER.encode(images)
    assert vectors.shape == (len(images), ENCODER.dim) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.array_equal(vectors, np.concatenate([ENCODER.encode([image]) for image in images]))


def test_no_images_give_no_rows() -> None:
    assert ENCODER.encode([]).shape == (0, ENCODER.dim)


@pytest.mark.parametrize("jitter", [(1, 1), (2, 2), (-2, 2), (0, -2)])
def test_a_shifted_emblem_is_still_nearest_to_itself(
    emblem: Callable[..., Image.Image], emblem_vectors: FloatArray, jitter: tuple[int, int]
) -> None:
    asked = range(0, COUNT, 4)
    scores = ENCODER.encode([emblem(i, 56, jitter) for i in asked]) @ emblem_vectors.T
    assert scores.argmax(axis=1).tolist() == list(asked)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((28, 28), Image.Resampling.BILINEAR),
        lambda image: image.resize((443, 591), Image.Resampling.NEAREST),
        lambda image: jpeg(image, 50),
    ],
    ids=["half size", "upscaled", "jpeg"],
)
def test_a_resized_or_compressed_emblem_is_still_nearest_to_itself(
    emblem: Callable[..., Image.Image],
    emblem_vectors: FloatArray,
    change: Callable[[Image.Image], Image.Image],
) -> None:
    asked = range(0, COUNT, 10)
    scores = ENCODER.encode([change(emblem(i)) for i in asked]) @ emblem_vectors.T
    assert scores.argmax(axis=1).tolist() == list(asked)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((100, 75)),
        lambda image: jpeg(image, 20),
        lambda image: ImageOps.mirror(image),
        lambda image: image.crop((24, 18, 296, 222)),
        lambda image: image.filter(ImageFilter.GaussianBlur(2)),
        lambda image: image.convert("L").convert("RGB"),
        lambda image: image.point(lambda value: min(255, int(value * 1.2) + 10)),
    ],
    ids=["thumbnail", "jpeg", "mirrored", "cropped", "blurred", "grey", "brightened"],
)
def test_a_changed_picture_is_still_nearest_to_itself(
    scene_vectors: FloatArray, change: Callable[[Image.Image], Image.Image]
) -> None:
    asked = range(0, 60, 3)
    scores = ENCODER.encode([change(scene(i)) for i in asked]) @ scene_vectors.T
    assert scores.argmax(axis=1).tolist() == list(asked)


def test_flat_pictures_are_told_apart_by_colour() -> None:
    colours = ["black", "white", "gray", "darkgray", "red", "darkred", "green", "blue", "yellow", "purple"]
    vectors = ENCODER.encode([Image.new("RGB", (32, 32), colour) for colour in colours])
    asked = ENCODER.encode([jpeg(Image.new("RGB", (64, 64), colour), 50) for colour in colours])
    assert (asked @ vectors.T).argmax(axis=1).tolist() == list(range(len(colours)))
