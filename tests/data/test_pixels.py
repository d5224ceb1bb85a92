"""An image under limits takes the tokens that the model's own processor would give it under the same limits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.config import DataConfig
from mmsearch_trl.data.dataset import load_dataset_rows, row_to_task
from mmsearch_trl.data.image_cells import BoundedImage
from mmsearch_trl.data.pixels import ModelPixels, PixelLimits, resized
from mmsearch_trl.data.reading import Reading
from mmsearch_trl.data.tasks import read_tasks
from mmsearch_trl.engine.images import ImageEncoder


Writer = Callable[..., Path]
SIZES = [(30, 20), (640, 480), (1000, 37), (57, 1200)]


def encoder(patch: int, least: int, most: int) -> ImageEncoder:
    processor: Any = Qwen2VLImageProcessorPil
    return ImageEncoder(processor(patch_size=patch, merge_size=2, size={"shortest_edge": least, "longest_edge": most}))


@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("limits", [(None, 100_352), (50_176, None), (31_360, 40_000), (100_352, 300_000)])
def test_tokens_are_those_of_a_processor_with_these_limits(
    patch: int, size: tuple[int, int], limits: tuple[int | None, int | None]
) -> None:
    least, most = limits
    own = encoder(patch, 3136, 400_000)
    wanted = encoder(patch, least or 3136, most or 400_000)
    assert own.pixels is not None and own.pixels == (3136, 400_000, 2 * patch)
    image = Image.new("RGB", size)
    shown = resized(image, ModelPixels(*own.pixels).size(*size, PixelLimits(least=least, most=most)))
    assert own.encode(shown).num_tokens == wanted.encode(image).num_tokens
    assert own.encode(shown).shown_size == wanted.encode(image).shown_size == shown.size


def test_rows_are_read_in_the_size_of_the_limits(write_jsonl: Writer, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(b"")
    Image.new("RGB", (640, 480)).save(tmp_path / "large.png")
    path = write_jsonl({"question": "What?", "answer": "x", "images": ["large.png", "box.png"]})
    reading = Reading(pixels=PixelLimits(most=50_000), model_pixels=ModelPixels(784, 1_000_000, 28))
    rows: Any = load_dataset_rows(path, reading=reading, cache_dir=tmp_path / "cache")
    plain: Any = load_dataset_rows(path, cache_dir=tmp_path / "cache")
    assert rows[0]["image_sizes"] == [[252, 168], [28, 28]]
    assert plain[0]["image_sizes"] == [[640, 480], [30, 20]]
    (task,) = read_tasks(path, reading=reading)
    for images in (task.images, row_to_task(rows[0]).images):
        assert [image.size for image in images] == [(252, 168), (28, 28)]


MODEL = ModelPixels(784, 1_000_000, 28)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"max_pixels": 2_000_000}, "max_pixels is 2000000, and the image processor of the model .* 784 to 1000000"),
        ({"min_pixels": 10}, "min_pixels is 10, and"),
        ({"min_pixels": 9000, "max_pixels": 8000}, "min_pixels 9000 is more than max_pixels 8000"),
        ({"max_pixels": 0}, "max_pixels must be at least 1"),
        ({"max_pixels": 9000, "resize_images": True}, "resize_images brings images to sizes of its own"),
    ],
)
def test_keys_that_cannot_be_kept_are_refused(keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        DataConfig(**keys).reading(MODEL)


def test_limits_of_a_row_go_before_those_of_the_recipe_and_as_far_as_the_models() -> None:
    reading = Reading(pixels=PixelLimits(least=40_000, most=50_000), model_pixels=MODEL)
    image = Image.new("RGB", (640, 480))
    for limits, size in {
        (None, None): (252, 168),
        (None, 900_000): (644, 476),
        (None, 9_000_000): (644, 476),
        (500_000, 900_000): (840, 616),
    }.items():
        bounded = BoundedImage(image, PixelLimits(least=limits[0], most=limits[1]))
        assert reading.opened(bounded).size == size
    for limits, model, reason in (
        (PixelLimits(least=2_000_000, most=3_000_000), MODEL, "no image can have at least 2000000"),
        (PixelLimits(most=100), MODEL, "and at most 100 pixels"),
        (PixelLimits(most=100), None, "need a vision-language model of the Qwen-VL family"),
    ):
        with pytest.raises(UserError, match=reason):
            Reading(model_pixels=model).opened(BoundedImage(image, limits))
