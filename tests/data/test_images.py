import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmsearch_trl.data.images import MAX_PIXELS, MIN_PIXELS, load_prompt_image, prompt_image_size, resize_prompt_image


# Sizes that MMSearch-R1's own preprocessing gave: mode, size before, size after.
CASES = [
    ("RGB", (384, 512), (443, 591)),
    ("RGB", (800, 531), (800, 531)),
    ("RGB", (64, 64), (512, 512)),
    ("RGB", (511, 512), (511, 512)),
    ("RGB", (951, 950), (950, 949)),
    ("RGB", (2048, 2048), (950, 950)),
    ("RGB", (4000, 300), (3470, 260)),
    ("RGBA", (700, 700), (700, 700)),
    ("P", (100, 900), (170, 1536)),
    ("L", (1, 5000), (7, 36203)),
    ("CMYK", (1344, 672), (1344, 672)),
    ("RGB", (399, 300), (590, 443)),
]


@pytest.mark.parametrize(("mode", "before", "after"), CASES)
def test_prompt_images_get_the_sizes_and_the_mode_of_upstream(
    mode: str, before: tuple[int, int], after: tuple[int, int]
) -> None:
    image = resize_prompt_image(Image.new(mode, before))
    assert (image.size, image.mode) == (after, "RGB")


def test_resizing_takes_the_nearest_pixel_and_mixes_no_colours() -> None:
    image = Image.new("RGB", (2, 1))
    image.putpixel((0, 0), (255, 0, 0))
    assert {colour for _, colour in resize_prompt_image(image).getcolors() or []} == {(255, 0, 0), (0, 0, 0)}


def test_a_fitting_image_is_not_copied() -> None:
    image = Image.new("RGB", (600, 600))
    assert resize_prompt_image(image) is image


@given(width=st.integers(1, 8000), height=st.integers(1, 8000))
def test_a_size_is_within_the_bounds_but_for_the_truncation_of_its_sides(width: int, height: int) -> None:
    new_width, new_height = prompt_image_size(width, height)
    assert new_width >= 1
    assert new_height >= 1
    assert (new_width + 1) * (new_height + 1) >= MIN_PIXELS
    assert new_width * new_height <= MAX_PIXELS


def test_a_strip_that_no_image_processor_takes_is_refused_when_it_is_read() -> None:
    assert load_prompt_image(Image.new("RGB", (400, 2))).size == (400, 2)
    with pytest.raises(ValueError, match="402 x 2 pixels"):
        load_prompt_image(Image.new("RGB", (402, 2)))
