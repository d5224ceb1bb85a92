"""Models of the Qwen-VL families, each with a hundred thousand weights, and its own processor.

Weights are spread more than twice as wide as the world's, so that outputs depend on every input: with the usual small
initial weights a wrong position or a missing image would hardly show.
"""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.engine.transformers import TransformersEngine
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.protocol.mmsearch import MMSearchProtocol
from mmsearch_trl.world.model import build_model
from mmsearch_trl.world.protocol import PROMPTS, TEMPLATES
from mmsearch_trl.world.tokenizer import CHAT_TEMPLATE, build_processor, build_tokenizer


class RestlessProtocol(MMSearchProtocol):
    """Reads a search or an answer out of any text, by its digest: a model with random weights searches all the time.

    A turn's own tokens decide, so the reading is as reproducible as the real one.
    """

    def read(self, text: str) -> Action:
        choice = hashlib.sha256(text.encode()).digest()[0] % 5
        if choice < 2:
            return Action(ActionKind.IMAGE_SEARCH)
        if choice < 4:
            return Action(ActionKind.TEXT_SEARCH, text.strip()[:20] or "?")
        return Action(ActionKind.ANSWER, text.strip())


@dataclass(frozen=True, eq=False)
class Family:
    """A model family in miniature."""

    name: str
    processor: Any
    build: Callable[[], PreTrainedModel]

    def model(self, seed: int = 0) -> PreTrainedModel:
        """A copy of its own of the one that the seed draws."""
        return copy.deepcopy(_drawn(self, seed))

    def protocol(self) -> MMSearchProtocol:
        return MMSearchProtocol(ChatEncoder(self.processor), PROMPTS, TEMPLATES)

    def restless(self) -> RestlessProtocol:
        return RestlessProtocol(ChatEncoder(self.processor), PROMPTS, TEMPLATES)

    def engine(self, model: PreTrainedModel, chat: ChatEncoder, **options: Any) -> TransformersEngine:
        settings = {
            "stop_ids": [chat.turn_end_id],
            "forbidden_ids": chat.vision_ids,
            "image_pad_id": chat.image_pad_id,
            "pad_id": chat.tokenizer.pad_token_id,
            "vocabulary_size": chat.vocabulary_size,
            "decode": chat.decode,
        }
        return TransformersEngine(model, chat.images, **(settings | options))


@lru_cache(8)
def _drawn(family: Family, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family.build()
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.data.normal_(std=0.1)
    tokenizer = family.processor.tokenizer
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model.eval()


def qwen2() -> Family:
    """Patches of 14 pixels; attention over whole images in every layer of the vision tower."""
    patches = _patches(14, 28, 56)
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**patches),
        tokenizer=build_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**patches),
        chat_template=CHAT_TEMPLATE,
    )
    text = _text(processor, num_hidden_layers=2, rope_parameters=_rope([4, 6, 6]))
    vision = _vision(14, embed_dim=32, hidden_size=64)  # here `hidden_size` is that of the language model
    config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **_ids(processor))
    return Family("qwen2-vl", processor, lambda: Qwen2VLForConditionalGeneration(config))


def qwen25() -> Family:
    """The world's: attention within windows in the vision tower, apart from its last layers."""
    processor = build_processor()
    # As `AutoProcessor` reads it back, and so as vLLM has it: the resizing of the PIL variant rounds differently.
    processor.image_processor = Qwen2VLImageProcessor(**processor.image_processor.to_dict())
    return Family("qwen2.5-vl", processor, lambda: build_model(processor))


def qwen3() -> Family:
    """Patches of 16 pixels, two DeepStack levels, and a 4 x 4 table of learned positions that is interpolated."""
    processor = _qwen3_processor()
    config = Qwen3VLConfig(tie_word_embeddings=True, **_qwen3_parts(processor))
    return Family("qwen3-vl", processor, lambda: Qwen3VLForConditionalGeneration(config))


def qwen3_moe() -> Family:
    processor = _qwen3_processor()
    config = Qwen3VLMoeConfig(tie_word_embeddings=True, **_qwen3_parts(processor, **_EXPERTS))
    return Family("qwen3-vl-moe", processor, lambda: Qwen3VLMoeForConditionalGeneration(config))


def qwen35() -> Family:
    """Linear attention, with a state that is carried from token to token, under a layer of full attention.

    Half of each head is rotated. The state forgets slowly, so that what came long before still shows.
    """
    processor = _qwen3_processor()
    config = Qwen3_5Config(tie_word_embeddings=True, **_qwen35_parts(processor))
    return Family("qwen3.5", processor, lambda: _remembering(Qwen3_5ForConditionalGeneration(config)))


def qwen35_moe() -> Family:
    processor = _qwen3_processor()
    experts = _EXPERTS | {"shared_expert_intermediate_size": 16}
    config = Qwen3_5MoeConfig(tie_word_embeddings=True, **_qwen35_parts(processor, **experts))
    return Family("qwen3.5-moe", processor, lambda: _remembering(Qwen3_5MoeForConditionalGeneration(config)))


FAMILIES = {"qwen2-vl": qwen2, "qwen2.5-vl": qwen25, "qwen3-vl": qwen3, "qwen3.5": qwen35}
"""Every family with vision that can be trained."""
MIXTURES = {"qwen3-vl-moe": qwen3_moe, "qwen3.5-moe": qwen35_moe}
"""Of experts."""
_EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}


def _qwen3_parts(processor: Any, **more: Any) -> dict[str, Any]:
    rope = _rope([6, 5, 5]) | {"mrope_interleaved": True}
    text = _text(processor, num_hidden_layers=3, head_dim=32, rope_parameters=rope, **more)
    vision = _vision(16, depth=3, hidden_size=48, intermediate_size=64, out_hidden_size=64, num_position_embeddings=16)
    vision |= {"deepstack_visual_indexes": [0, 1]}
    return {"text_config": text, "vision_config": vision, **_ids(processor)}


def _qwen35_parts(processor: Any, **more: Any) -> dict[str, Any]:
    rope = _rope([4, 2, 2]) | {"mrope_interleaved": True, "partial_rotary_factor": 0.5}
    more |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    more |= {"linear_key_head_dim": 16, "linear_value_head_dim": 16}
    layers = ["linear_attention", "full_attention"]
    text = _text(processor, num_hidden_layers=2, layer_types=layers, head_dim=32, rope_parameters=rope, **more)
    vision = _vision(16, hidden_size=48, intermediate_size=64, out_hidden_size=64, num_position_embeddings=16)
    return {"text_config": text, "vision_config": vision, **_ids(processor)}


def _remembering(model: PreTrainedModel) -> PreTrainedModel:
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            parameter.data.fill_(-3.0)
    return model


def _qwen3_processor() -> Qwen3VLProcessor:
    patches = _patches(16, 32, 96)
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**patches),
        tokenizer=build_tokenizer(),
        video_processor=Qwen3VLVideoProcessor(**patches),
        chat_template=CHAT_TEMPLATE,
    )


def _patches(size: int, least: int, most: int) -> dict[str, Any]:
    """Of image and video processors: images have the area of a square with a side from `least` to `most` pixels."""
    area = {"shortest_edge": least**2, "longest_edge": most**2}
    return {"patch_size": size, "temporal_patch_size": 2, "merge_size": 2, "size": area}


def _rope(sections: list[int]) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections}


def _text(processor: Any, **more: Any) -> dict[str, Any]:
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 2}
    tokenizer = processor.tokenizer
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return {"vocab_size": len(tokenizer), "max_position_embeddings": 1024, **shape, **ids, **more}


def _vision(patch: int, **more: Any) -> dict[str, Any]:
    shape = {"depth": 2, "num_heads": 2, "patch_size": patch, "spatial_merge_size": 2, "temporal_patch_size": 2}
    return shape | more


def _ids(processor: Any) -> dict[str, Any]:
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    return {key: processor.tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}
