"""How much arithmetic a training step needs, and how much a GPU can do.

Counted is what the step needs and no more: matrix products of tokens that are there, causal attention, the LM head at
scored tokens, the vision tower once per image. Padding, recomputation under gradient checkpointing and logits that
nobody reads are work too, but they are not counted, so what a variant wastes lowers its share of the peak.
"""

from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.rows import MERGE, Row


PEAKS = {"H200 NVL": 835e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12}
"""Dense bf16 operations per second, by the vendor's data sheets; the first name that a GPU's name holds counts."""


def peak(gpu: str) -> float | None:
    return next((value for name, value in PEAKS.items() if name.lower() in gpu.lower()), None)


def needed(model: Any, rows: Sequence[Row], *, adapters_only: bool) -> float:
    """Operations of one forward and backward pass over the rows.

    Args:
        adapters_only: LoRA on the language model: no gradients of its matrices are computed, and none in the vision
            tower. What the adapters add is left out.
    """
    text, vision = _matrices(model)
    config = model.config.get_text_config()
    heads = config.num_attention_heads * (config.hidden_size // config.num_attention_heads)
    forward = seen = 0.0
    for row in rows:
        length = len(row.ids)
        forward += 2 * text * length + 2 * config.num_hidden_layers * heads * length**2
        forward += 2 * config.vocab_size * config.hidden_size * sum(row.scored)
        seen += sum(_image(model.config.vision_config, vision, height * width) for _, height, width in row.grids)
    return forward * (2 if adapters_only else 3) + seen * (1 if adapters_only else 3)


def _matrices(model: Any) -> tuple[int, tuple[int, int]]:
    """Entries of the matrices that every text token, every patch and every merged token goes through."""
    text = patches = merged = 0
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or "lora_" in name or "embed_tokens" in name or "lm_head" in name:
            continue
        if ".merger." in name:
            merged += parameter.numel()
        elif ".visual." in name:
            patches += parameter.numel()
        else:
            text += parameter.numel()
    return text, (patches, merged)


def _image(config: Any, matrices: tuple[int, int], patches: int) -> float:
    whole = len(config.fullatt_block_indexes)
    window = min((config.window_size // config.patch_size) ** 2, patches)
    products = 2 * (matrices[0] * patches + matrices[1] * patches / MERGE**2)
    return products + 4 * config.hidden_size * patches * (whole * patches + (config.depth - whole) * window)
