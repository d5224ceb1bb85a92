"""The shapes of models that shipped recipes name, as published: for arithmetic where model and Hub are not there."""

import re
from typing import Any

from transformers import PreTrainedConfig, Qwen2_5_VLConfig, Qwen2Config, Qwen2VLConfig, Qwen3VLConfig


_QWEN25: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    # width, MLP width, layers, heads, key-value heads, vocabulary, whether the head is the embedding
    "3B": (2048, 11008, 36, 16, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
    "32B": (5120, 27648, 64, 40, 8, 152064, False),
    "72B": (8192, 29568, 80, 64, 8, 152064, False),
}
_QWEN2_VL: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    "2B": (1536, 8960, 28, 12, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
    "72B": (8192, 29568, 80, 64, 8, 152064, False),
}
_QWEN3_VL: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "4B": (
        {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36},
        {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]},
        True,
    ),
    "8B": (
        {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36},
        {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]},
        False,
    ),
}


def published_config(name: str) -> PreTrainedConfig | None:
    """The configuration of a model's name on the Hub; None where it is none of these."""
    given = re.fullmatch(r"Qwen/(Qwen2-VL|Qwen2\.5-VL|Qwen3-VL|Qwen2\.5)-(\d+B)(?:-Instruct)?", name)
    if given is None:
        return None
    family, size = given[1], given[2]
    if family == "Qwen3-VL":
        return _qwen3_vl(size) if size in _QWEN3_VL else None
    if family == "Qwen2-VL":
        return _qwen2_vl(size) if size in _QWEN2_VL else None
    if size not in _QWEN25:
        return None
    return _qwen25_vl(size) if family == "Qwen2.5-VL" else Qwen2Config(**_text(_QWEN25[size]), dtype="bfloat16")


def _text(shape: tuple[int, int, int, int, int, int, bool]) -> dict[str, Any]:
    width, mlp, layers, heads, key_values, vocabulary, tied = shape
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_values,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


def _qwen25_vl(size: str) -> PreTrainedConfig:
    text = _text(_QWEN25[size])
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "num_heads": 16,
        "intermediate_size": 3420 if size in ("3B", "7B") else 3456,
        "out_hidden_size": text["hidden_size"],
    }
    tied = text["tie_word_embeddings"]
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, dtype="bfloat16")


def _qwen2_vl(size: str) -> PreTrainedConfig:
    text = _text(_QWEN2_VL[size])
    vision = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": text["hidden_size"]}
    tied = text["tie_word_embeddings"]
    return Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, dtype="bfloat16")


def _qwen3_vl(size: str) -> PreTrainedConfig:
    text, vision, tied = _QWEN3_VL[size]
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
    return Qwen3VLConfig(
        text_config=text | heads | {"tie_word_embeddings": tied},
        vision_config=vision
        | {"num_heads": 16, "out_hidden_size": text["hidden_size"], "num_position_embeddings": 2304},
        tie_word_embeddings=tied,
        dtype="bfloat16",
    )
