"""Prompt images at the sizes on which MMSearch-R1 trained.

Upstream brings every query image between 512 x 512 and 2 x 672 x 672 pixels, with nearest-neighbour sampling, before
the model's own image processor sees it. Images that tools return are not resized.
"""

import math

from PIL import Image

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.image_cells import ImageSource, unbounded
from mmsearch_trl.search.media.loading import load_image


MAX_PIXELS = 672 * 672 * 2
MIN_PIXELS = 512 * 512
MAX_ASPECT = 200
"""Beyond this ratio of sides `smart_resize` of the Qwen-VL image processors raises."""


def prompt_image_size(width: int, height: int) -> tuple[int, int]:
    """The `(width, height)` in pixels to which a prompt image of the given size is brought.

    Each side is truncated, so that the result may lie a little under the bound that it was scaled to.
    """
    if width * height > MAX_PIXELS:
        width, height = _scaled(width, height, MAX_PIXELS)
    if width * height < MIN_PIXELS:
        width, height = _scaled(width, height, MIN_PIXELS)
    return width, height


def load_prompt_image(source: ImageSource | str) -> Image.Image:
    """Open a question's image in its own size, RGB.

    Raises:
        UserError: It cannot be opened, or the image processors of Qwen-VL would refuse its shape.
    """
    image = load_image(unbounded(source) if not isinstance(source, str) else source)
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise UserError(f"{image.width} x {image.height} pixels: one side is over {MAX_ASPECT} times the other")
    return image


def resize_prompt_image(image: Image.Image) -> Image.Image:
    """Resize to `prompt_image_size` and convert to RGB; an RGB image of a fitting size is returned as it is."""
    size = prompt_image_size(*image.size)
    if size != image.size:
        image = image.resize(size, Image.Resampling.NEAREST)
    return image if image.mode == "RGB" else image.convert("RGB")


def _scaled(width: int, height: int, pixels: int) -> tuple[int, int]:
    # One pixel at least: a strip thousands of times longer than wide would otherwise vanish.
    factor = math.sqrt(pixels / (width * height))
    return max(1, int(width * factor)), max(1, int(height * factor))
