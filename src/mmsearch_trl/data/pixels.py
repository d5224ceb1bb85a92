"""Limits of the sizes of question images, as a recipe or a row gives them.

An image is brought to the size that the model's image processor would give it under these limits, before the processor
sees it: so it takes the same number of tokens in the trainer and in any engine, whose processors have limits of their
own.
"""

from dataclasses import dataclass

from PIL import Image

from mmsearch_trl.core.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelLimits:
    """Fewest and most pixels of a question's image; None for what the model's image processor has."""

    least: int | None = None
    most: int | None = None

    def or_else(self, other: "PixelLimits") -> "PixelLimits":
        """These, and the other's where there is none."""
        return PixelLimits(
            least=other.least if self.least is None else self.least,
            most=other.most if self.most is None else self.most,
        )


NO_LIMITS = PixelLimits()


@dataclass(frozen=True, slots=True)
class ModelPixels:
    """What a model's image processor does to an image, of the Qwen-VL family.

    Attributes:
        least, most: Pixels between which it brings each image.
        factor: Side of the square that becomes one token, in pixels.
    """

    least: int
    most: int
    factor: int

    def check(self, limits: PixelLimits) -> None:
        """
        Raises:
            UserError: its own limits are narrower, so that these would not be kept.
        """
        for key, number in (("min_pixels", limits.least), ("max_pixels", limits.most)):
            if number is not None and not self.least <= number <= self.most:
                raise UserError(
                    f"{key} is {number}, and the image processor of the model brings every image to {self.least} to "
                    f"{self.most} pixels: choose a number between, or change the model's preprocessor_config.json"
                )

    def size(self, width: int, height: int, limits: PixelLimits) -> tuple[int, int]:
        """The `(width, height)` that it would give an image, if its limits were these, within its own.

        Raises:
            UserError: no size is within both.
        """
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize  # takes seconds to import

        least = max(self.least, limits.least or self.least)
        most = min(self.most, limits.most or self.most)
        if least > most:
            raise UserError(
                f"no image can have at least {limits.least or self.least} and at most {limits.most or self.most} "
                f"pixels, and the {self.least} to {self.most} of the model's image processor"
            )
        rows, columns = smart_resize(height, width, self.factor, least, most)
        return columns, rows


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An image of another size, as the image processors of Qwen-VL scale."""
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
