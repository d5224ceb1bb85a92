"""Attention of a vision tower over all windows of all images at once.

Vision towers of the Qwen-VL families attend within windows, or within images: thousands of short sequences in one row
of patches. With `sdpa` transformers calls the kernel once for each of them in every layer, and a training step waits
for these calls. Only an implementation that has `flash` in its name is handed all of them in one call, as cumulative
lengths (`is_flash_attention_requested`); the one here needs no package besides PyTorch: its FlashAttention kernel for
sequences of any lengths where that runs, else its usual attention over batches of windows of one length.
"""

from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel


ALL_WINDOWS = "all_windows_flash"
_HALF = (torch.float16, torch.bfloat16)


def attend_to_all_windows(model: PreTrainedModel) -> None:
    """Have the model's vision towers attend so where they would use `sdpa`; a model without one stays as it is."""
    AttentionInterface.register(ALL_WINDOWS, _all_windows)
    towers = [
        name
        for name in model.config.sub_configs
        if name.startswith("vision") and getattr(model.config, name)._attn_implementation == "sdpa"
    ]
    if towers:
        model.set_attn_implementation(dict.fromkeys(towers, ALL_WINDOWS))


def _all_windows(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    dropout: float,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each window, in the signature of `transformers.AttentionInterface`.

    Args:
        query: And key and value, [1, heads, patches, dim].
        cu_seq_lens_q: Where windows begin, and the end of the last: [windows + 1], int32.
        max_length_q: Patches of the largest window.

    Returns:
        [1, patches, heads, dim], and no weights.
    """
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [patches, heads, dim]
    if query.is_cuda and query.dtype in _HALF and not dropout:
        ends, longest = cu_seq_lens_q.to(torch.int32), max_length_q
        attended = varlen_attn(query, key, value, ends, ends, longest, longest, scale=scaling)
        assert isinstance(attended, torch.Tensor)  # it returns more only where more is asked for
        return attended[None], None
    lengths = cu_seq_lens_q.diff()
    order, found = [], []
    for length in lengths.unique().tolist():
        starts = cu_seq_lens_q[:-1][lengths == length]
        patches = (starts[:, None] + torch.arange(length, device=starts.device)).flatten()
        windows = (part[patches].unflatten(0, (-1, length)).transpose(1, 2) for part in (query, key, value))
        order.append(patches)
        found.append(
            scaled_dot_product_attention(*windows, dropout_p=dropout, scale=scaling).transpose(1, 2).flatten(0, 1)
        )
    return torch.cat(found)[torch.cat(order).argsort()][None], None
