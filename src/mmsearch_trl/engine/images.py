"""Turns images into what the model's vision tower takes, once per distinct image."""

from collections import OrderedDict
from threading import Lock
from typing import Any, NamedTuple

import torch
from PIL import Image

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.images import ImageInput, image_digest


class ImageFeatures(NamedTuple):
    """`pixel_values` (patches, channels) and `grid_thw` (3,) of one image, as Qwen-VL image processors give them."""

    pixel_values: torch.Tensor
    grid_thw: torch.Tensor


class ImageEncoder:
    """Content-addressed cache around a Qwen-VL image processor.

    Args:
        image_processor: The model's own, called on one image at a time; None for a model that sees no images.
        capacity_bytes: Pixel values kept; the least recently used go first.
    """

    def __init__(self, image_processor: Any, capacity_bytes: int = 1 << 30) -> None:
        self._processor = image_processor
        self.merge_size: int = image_processor.merge_size if image_processor is not None else 1
        self.patch_size: int = image_processor.patch_size if image_processor is not None else 1
        self.pixels = _pixels(image_processor)
        """Fewest and most pixels to which an image is brought, and the side of the square that becomes one token; None
        where the processor keeps to no such bounds."""
        self._capacity = capacity_bytes
        self._held = 0
        self._cache: OrderedDict[str, ImageFeatures] = OrderedDict()
        self._lock = Lock()
        self.processed = 0
        """Images that went through the processor so far."""

    def encode(self, image: Image.Image) -> ImageInput:
        """
        Raises:
            UserError: the model sees no images, or its processor does not take this one.
        """
        if self._processor is None:
            raise UserError("the model is a language model and sees no images; name a vision-language model")
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        key = image_digest(rgb)
        frames, rows, columns = self._features(key, rgb).grid_thw.tolist()
        shown_size = (columns * self.patch_size, rows * self.patch_size)
        return ImageInput(rgb, key, frames * rows * columns // self.merge_size**2, shown_size)

    def features(self, image: ImageInput) -> ImageFeatures:
        return self._features(image.key, image.image)

    def _features(self, key: str, image: Image.Image) -> ImageFeatures:
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        try:
            output = self._processor(images=[image], return_tensors="pt")
        except ValueError as error:  # such as one side over 200 times the other
            raise UserError(f"the model's image processor refuses the image: {error}") from error
        features = ImageFeatures(output["pixel_values"], output["image_grid_thw"][0])
        with self._lock:
            self.processed += 1
            if key not in self._cache:
                self._cache[key] = features
                self._held += features.pixel_values.nbytes
            while self._held > self._capacity and len(self._cache) > 1:
                self._held -= self._cache.popitem(last=False)[1].pixel_values.nbytes
        return features


def _pixels(image_processor: Any) -> tuple[int, int, int] | None:
    size = getattr(image_processor, "size", None) or {}
    least, most = size.get("shortest_edge"), size.get("longest_edge")
    if least is None or most is None:
        return None
    return least, most, image_processor.patch_size * image_processor.merge_size
