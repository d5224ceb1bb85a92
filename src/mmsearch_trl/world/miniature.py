"""Models of the families that recipes train, made on the spot: real architectures with some 100 thousand weights.

They have learned nothing. What a recipe does with a real model it does with these within seconds: prompts as long as
in earnest, tags of several tokens, images, adapters on layers of the same names.
"""

from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from mmsearch_trl.world.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS


_SPLIT = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Where Qwen's tokenizers split, contractions aside."""
_PROMPTS = Path(__file__).parents[1] / "protocol" / "prompts"
_CONTEXT = 32768
_WIDTH = 64
_LAYERS: dict[str, Any] = {
    "hidden_size": _WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": _CONTEXT,
}


class Family(StrEnum):
    """An architecture, by its `model_type`."""

    QWEN2_VL = "qwen2_vl"
    QWEN25_VL = "qwen2_5_vl"
    QWEN3_VL = "qwen3_vl"
    QWEN35 = "qwen3_5"
    QWEN2 = "qwen2"
    """Language alone."""

    @classmethod
    def of(cls, name: str, *, vision: bool) -> "Family":
        """The family of a model's name, or the nearest of these that has vision, or has none."""
        if not vision:
            return cls.QWEN2
        spelled = {"qwen2-vl": cls.QWEN2_VL, "qwen3.5": cls.QWEN35, "qwen3": cls.QWEN3_VL}
        return next((family for part, family in spelled.items() if part in name.lower()), cls.QWEN25_VL)


def save_miniature(family: Family, folder: Path) -> None:
    """Write a model and its processor, or its tokenizer where it is one of language alone."""
    tokenizer = _tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = _BUILDERS[family](tokenizer)
    assert model.generation_config is not None
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, taught by the shipped prompts."""
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_SPLIT), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=2048, initial_alphabet=alphabet, show_progress=False)
    texts = [path.read_text(encoding="utf-8") for path in sorted(_PROMPTS.glob("*.txt"))]
    bpe.train_from_iterator([*texts, "user assistant system"], trainer)
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in ("<|im_end|>", "<|endoftext|>")],
        clean_up_tokenization_spaces=False,
        model_max_length=_CONTEXT,
        chat_template=CHAT_TEMPLATE,
    )


def _text(tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **_LAYERS,
        **more,
    }


def _vision(patch: int, **more: Any) -> dict[str, Any]:
    return {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": patch,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": _WIDTH,
        **more,
    }


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    keys = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in zip(keys, names, strict=True)}


def _patches(patch: int) -> dict[str, Any]:
    """Of image and video processors; images of any size up to what is real for the families."""
    size = {"shortest_edge": (2 * patch) ** 2, "longest_edge": 1280 * (2 * patch) ** 2}
    return {"patch_size": patch, "temporal_patch_size": 2, "merge_size": 2, "size": size}


def _qwen2_vl(tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedModel, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 14, "hidden_size": _WIDTH}
    config = Qwen2VLConfig(
        text_config=_text(tokenizer, rope_parameters=rope),
        vision_config=vision,  # its `hidden_size` is the language model's
        tie_word_embeddings=True,
        **_ids(tokenizer),
    )
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(**_patches(14)),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**_patches(14)),
        chat_template=CHAT_TEMPLATE,
    )
    return Qwen2VLForConditionalGeneration(config), processor


def _qwen25_vl(tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedModel, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
    config = Qwen2_5_VLConfig(
        text_config=_text(tokenizer, rope_parameters=rope),
        vision_config=_vision(14, fullatt_block_indexes=[1], window_size=112),
        tie_word_embeddings=True,
        **_ids(tokenizer),
    )
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(**_patches(14)),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**_patches(14)),
        chat_template=CHAT_TEMPLATE,
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3_vl(tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedModel, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config=_text(tokenizer, head_dim=32, rope_parameters=rope),
        vision_config=_vision(16, num_position_embeddings=256, deepstack_visual_indexes=[0, 1]),
        tie_word_embeddings=True,
        **_ids(tokenizer),
    )
    return Qwen3VLForConditionalGeneration(config), _qwen3_processor(tokenizer)


def _qwen35(tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedModel, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    linear |= {"linear_key_head_dim": 16, "linear_value_head_dim": 16}
    config = Qwen3_5Config(
        text_config=_text(
            tokenizer,
            head_dim=32,
            rope_parameters=rope | {"partial_rotary_factor": 0.5},
            layer_types=["linear_attention", "full_attention"],
            **linear,
        ),
        vision_config=_vision(16, num_position_embeddings=256),
        tie_word_embeddings=True,
        **_ids(tokenizer),
    )
    return Qwen3_5ForConditionalGeneration(config), _qwen3_processor(tokenizer)


def _qwen3_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(**_patches(16)),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**_patches(16)),
        chat_template=CHAT_TEMPLATE,
    )


def _qwen2(tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedModel, Any]:
    return Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=True, **_text(tokenizer))), tokenizer


_BUILDERS = {
    Family.QWEN2_VL: _qwen2_vl,
    Family.QWEN25_VL: _qwen25_vl,
    Family.QWEN3_VL: _qwen3_vl,
    Family.QWEN35: _qwen35,
    Family.QWEN2: _qwen2,
}
