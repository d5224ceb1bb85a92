"""The checkpoint that every arm trains: a random Qwen2.5-VL of four million parameters, and its processor."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.world.model import build_config
from mmsearch_trl.world.tokenizer import build_processor


WINDOW = 1024
SIDE = 168
"""Pixels of a picture's side: 36 tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Sizes of a model; heads have 64 dimensions, about a quarter of them keys and values."""

    layers: int
    width: int
    feed_forward: int
    vision_layers: int
    vision_width: int

    def config(self, processor: Qwen2_5_VLProcessor) -> Qwen2_5_VLConfig:
        values: dict[str, Any] = build_config(processor).to_dict()
        values["text_config"] |= {
            "layer_types": None,
            "hidden_size": self.width,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.width // 64,
            "num_key_value_heads": max(1, self.width // 256),
            "max_position_embeddings": WINDOW,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]},
        }
        values["vision_config"] |= {
            "depth": self.vision_layers,
            "hidden_size": self.vision_width,
            "intermediate_size": 2 * self.vision_width,
            "num_heads": self.vision_width // 32,
            "out_hidden_size": self.width,
        }
        return Qwen2_5_VLConfig(**values)


GEOMETRY = Geometry(layers=4, width=256, feed_forward=704, vision_layers=2, vision_width=128)
TINY = Geometry(layers=2, width=128, feed_forward=256, vision_layers=2, vision_width=64)


def make_processor() -> Qwen2_5_VLProcessor:
    """The world's, but pictures keep 168 pixels a side."""
    processor = build_processor()
    processor.image_processor.size = {"shortest_edge": 28 * 28, "longest_edge": SIDE * SIDE}
    return processor


def make_chat(processor: Qwen2_5_VLProcessor) -> ChatEncoder:
    """An encoder under which no turn ends of itself: what ends one may not be sampled, as under `ignore_eos`."""
    chat = ChatEncoder(processor)
    chat.forbidden_ids |= {chat.turn_end_id, processor.tokenizer.eos_token_id}
    return chat


def write_checkpoint(folder: Path, geometry: Geometry) -> int:
    """Returns the number of parameters."""
    processor = make_processor()
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(geometry.config(processor))
    tokenizer = processor.tokenizer
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())
