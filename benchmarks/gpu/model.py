"""Random models of the Qwen2.5-VL architecture, and an LM head in chunks for where TRL is not installed."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from benchmarks.gpu.rows import Vocabulary
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from mmsearch_trl.models.vision_attention import ALL_WINDOWS, attend_to_all_windows


IDS: dict[str, Any] = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
CHUNK = 1024
"""Tokens per tile of the LM head; a tile of Qwen2.5-VL's vocabulary takes 0.6 GB in fp32."""


def three_billion() -> Qwen2_5_VLConfig:
    """The published geometry of Qwen2.5-VL-3B: 3.75 billion parameters with the vision tower."""
    text: dict[str, Any] = {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    vision: dict[str, Any] = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "window_size": 112,
    }
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **IDS)


def tiny() -> Qwen2_5_VLConfig:
    """The same architecture, for a processor and a minute."""
    text: dict[str, Any] = {
        "vocab_size": 600,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "initializer_range": 0.1,
        "bos_token_id": None,
        "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
    }
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
        "window_size": 112,
    }
    ids: dict[str, Any] = {name: 590 + i for i, name in enumerate(IDS)}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)


def vocabulary(config: Qwen2_5_VLConfig) -> Vocabulary:
    return Vocabulary.of(config, 0, min(getattr(config, name) for name in IDS) - 10)


def build(config: Qwen2_5_VLConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """A model with random weights, its LM head scoring labels as `mmsearch_trl.trainer.log_probs` asks."""
    free()  # the model before: with its patched forward it is part of a cycle
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation="sdpa")
    add_scoring_head(model)
    return model


def rounded(model: Any, *dtypes: torch.dtype) -> Any:
    """Weights through each of the dtypes; rotary frequencies stay fp32, as in a model that was loaded."""
    for parameter in model.parameters():
        for dtype in dtypes:
            parameter.data = parameter.data.to(dtype)
    return model


def add_scoring_head(model: Any) -> str:
    """TRL's fused LM head, or a plain one in its place; says which."""
    try:
        from trl.trainer.utils import add_fused_lm_head
    except ImportError:
        model.forward = MethodType(_scoring_forward(model.forward), model)
        return "plain PyTorch"
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return "TRL's"


def _scoring_forward(original: Any) -> Any:
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **inputs: Any) -> Any:
        if not fused_lm_head:
            return original(*args, **inputs)
        hidden = self.model(*args, use_cache=False, **inputs).last_hidden_state[:, :-1]
        wanted = labels[:, 1:] != -100
        values = [
            checkpoint(_score, states, self.lm_head.weight, targets, use_reentrant=False)
            for states, targets in zip(hidden[wanted].split(CHUNK), labels[:, 1:][wanted].split(CHUNK), strict=True)
        ]
        log_probs, entropy = (torch.cat(parts) for parts in zip(*values, strict=True))
        empty = torch.zeros(wanted.shape, device=hidden.device)
        return SimpleNamespace(
            log_probs=empty.masked_scatter(wanted, log_probs), entropy=empty.masked_scatter(wanted, entropy)
        )

    return forward


def _score(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = (hidden @ weight.T).float()
    total = logits.logsumexp(dim=-1)
    with torch.no_grad():
        entropy = total - (logits.softmax(dim=-1) * logits).sum(dim=-1)
    return logits.gather(1, targets[:, None])[:, 0] - total, entropy


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def attention(model: Any, kind: str) -> Iterator[None]:
    """Run the text and vision layers with another attention, for a while."""
    before = model.config._attn_implementation
    if kind == ALL_WINDOWS:
        attend_to_all_windows(model)
    else:
        model.set_attn_implementation(kind)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
