"""Images as a model sees them, and by what they are known."""

import hashlib
from dataclasses import dataclass

from PIL import Image


def image_digest(image: Image.Image) -> str:
    """SHA-256 of an image's decoded RGB pixels and size: the same image has the same key however it was encoded."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode() + rgb.tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class ImageInput:
    """One image as the model sees it.

    Attributes:
        image: RGB image, before the model's own image processor.
        key: SHA-256 of its pixels; the same image is processed once per rollout.
        num_tokens: Image pads that stand for it in the token ids.
        shown_size: Width and height in pixels after the image processor's resizing: what the model sees.
    """

    image: Image.Image
    key: str
    num_tokens: int
    shown_size: tuple[int, int]


Part = str | ImageInput
"""A piece of a message: text, or an image where it stands."""
