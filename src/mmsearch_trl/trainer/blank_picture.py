"""A picture that says nothing, behind the end of a row: nothing attends to it and nothing is predicted there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

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
