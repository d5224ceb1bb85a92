"""How rows of data are read, whatever holds them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.message import Message
from mmsearch_trl.data.answers import WORDS, Scoring
from mmsearch_trl.data.columns import LAYOUTS_ALONE, Columns
from mmsearch_trl.data.image_cells import BoundedImage, ImageSource
from mmsearch_trl.data.images import load_prompt_image
from mmsearch_trl.data.messages import ConversationRules, question_of, read_conversation
from mmsearch_trl.data.opening import AS_WRITTEN, Opening
from mmsearch_trl.data.pixels import NO_LIMITS, ModelPixels, PixelLimits, resized


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """
    Attributes:
        columns: Names of columns that no known layout has.
        image_folder: Where paths of images start; None for the folder of the file.
        streaming: Read a data set of the Hub as it arrives.
        most_rows: Of each source, usable ones; None for all.
        pixels: Limits of images that have none of their own.
        model_pixels: Of the model's image processor; None where no model is known.
        rules: Read whole conversations; without them, the question is what the user said last.
        opening: What is said around a row's own words, where conversations are read.
        scoring: What the reward asks of gold answers.
    """

    columns: Columns = LAYOUTS_ALONE
    image_folder: Path | None = None
    streaming: bool = False
    most_rows: int | None = None
    pixels: PixelLimits = NO_LIMITS
    model_pixels: ModelPixels | None = None
    rules: ConversationRules | None = None
    opening: Opening = AS_WRITTEN
    scoring: Scoring = WORDS

    def opened(self, source: ImageSource) -> Image.Image:
        """An image as it is shown: of its own size where no limits are given for it.

        Raises:
            UserError: it cannot be opened, or no size is within the limits.
        """
        image = load_prompt_image(source)
        return resized(image, self.shown_size(image, source))

    def shown_size(self, image: Image.Image, source: ImageSource) -> tuple[int, int]:
        """The size of an image that was opened, as `opened` brings it to."""
        limits = source.limits.or_else(self.pixels) if isinstance(source, BoundedImage) else self.pixels
        if limits == NO_LIMITS:
            return image.size
        if self.model_pixels is None:
            raise UserError("min_pixels and max_pixels need a vision-language model of the Qwen-VL family")
        return self.model_pixels.size(*image.size, limits)

    def conversation(
        self, cell: Any, images: Sequence[ImageSource], folder: Path
    ) -> tuple[str, tuple[Message, ...], tuple[ImageSource, ...]]:
        """The question of a cell that holds a conversation, all of its messages, and the images that they show.

        Args:
            images: What the row holds beside its messages.

        Raises:
            UserError: see `read_conversation`.
        """
        assert self.rules is not None
        messages, images = read_conversation(cell, images, folder, self.rules)
        return question_of(messages), self.opening.applied(messages), images

    def fingerprint(self) -> str:
        """Differs where rows are read differently."""
        plain = replace(self, rules=None, scoring=self.scoring.unchecked())
        if self.rules is not None:
            return repr((plain, self.rules.fingerprint, self.rules.answered))
        return repr(replace(plain, model_pixels=None) if self.pixels == NO_LIMITS else plain)

    def unchecked(self) -> "Reading":
        """The same without looking at what a model can take or a rule can score."""
        rules = None if self.rules is None else replace(self.rules, check=lambda messages: None)
        return replace(self, rules=rules, scoring=self.scoring.unchecked())


AS_IT_IS = Reading()
"""Known layouts, paths from the folder of the file, all rows."""
