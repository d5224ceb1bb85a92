"""A picture that says nothing, so that every rank runs the vision tower where one of them does.

Sharded weights (FSDP2, ZeRO-3) are gathered layer by layer, and gradients are reduced layer by layer (ZeRO-2): calls
that all ranks must make together. A rank whose rows have no picture would run no vision tower, and take part in the
wrong calls, or wait for ever. Its micro-batch is given one blank picture, behind the end of a row: nothing attends to
it and nothing is predicted there, so that no other value changes, and the gradient that it leaves is exactly 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.engine.images import ImageEncoder


_SIDE = 28
"""Pixels; the image processor enlarges it to the least that the model takes."""

_FILL = {"attention_mask": 0, "labels": -100, "mm_token_type_ids": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class BlankPicture:
    """A grey picture as the vision tower takes it.

    Attributes:
        pixel_values: `(patches, channels)`.
        grid_thw: `(3,)`.
        num_tokens: Of the language model.
        image_pad_id: The token that stands for each of them.
        pad_id: Any other token.
    """

    pixel_values: torch.Tensor
    grid_thw: torch.Tensor
    num_tokens: int
    image_pad_id: int
    pad_id: int

    @classmethod
    def of(cls, processor: Any) -> "BlankPicture":
        """As a Qwen-VL style processor makes it."""
        images, tokenizer = ImageEncoder(processor.image_processor), processor.tokenizer
        image = images.encode(Image.new("RGB", (_SIDE, _SIDE), "grey"))
        features = images.features(image)
        return cls(
            pixel_values=features.pixel_values,
            grid_thw=features.grid_thw,
            num_tokens=image.num_tokens,
            image_pad_id=tokenizer.convert_tokens_to_ids(processor.image_token),
            pad_id=tokenizer.pad_token_id,
        )

    def behind(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs of a forward pass without pictures, right-padded, with this one behind the end of the first row.

        Args:
            inputs: `input_ids`, `attention_mask` and, where there are such, `labels` and `mm_token_type_ids`, `(b, t)`
                each, which become `(b, t + num_tokens)`; others stay as they are.
        """
        ids = inputs["input_ids"]
        padded = dict(inputs)
        for name, fill in ({"input_ids": self.pad_id} | _FILL).items():
            if name in inputs:
                tail = inputs[name].new_full((len(ids), self.num_tokens), fill)
                padded[name] = torch.cat([inputs[name], tail], dim=1)
        padded["input_ids"][0, -self.num_tokens :] = self.image_pad_id
        if "mm_token_type_ids" in padded:
            padded["mm_token_type_ids"][0, -self.num_tokens :] = 1
        padded["pixel_values"] = self.pixel_values.to(ids.device)
        padded["image_grid_thw"] = self.grid_thw[None].to(ids.device)
        return padded


class VisionOnAllRanks:
    """Has every rank run the vision tower in a micro-batch where one does.

    Args:
        processor: Of the model; the tokenizer of a language model, which has no vision tower, is taken too.
    """

    def __init__(self, processor: Any, ranks: Ranks) -> None:
        self._ranks = ranks
        several = ranks.count > 1 and getattr(processor, "image_processor", None) is not None
        self._blank = BlankPicture.of(processor) if several else None

    def blank(self, has_pictures: bool) -> BlankPicture | None:
        """The picture for forward passes that have none, if any rank's micro-batch has one; a collective call.

        Where no rank has any, none runs the vision tower: so does one process, whose optimizer leaves it alone.
        """
        if self._blank is None or not self._ranks.any(has_pictures):
            return None
        return self._blank
