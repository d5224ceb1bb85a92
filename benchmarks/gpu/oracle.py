"""Are log-probs of a padded batch with pictures those of each sequence alone? In fp32 and in bf16."""

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.gpu.model import build, vocabulary
from benchmarks.gpu.passes import Batch, packed, padded_logits
from benchmarks.gpu.rows import Row, Writer, padded


IMAGES = (0, 6, 1, 3, 0, 2, 5, 4)


def oracle(config: Any, device: torch.device, *, scale: float) -> list[dict[str, Any]]:
    """A table row per dtype: the largest difference at scored tokens, and what bf16 itself costs for comparison.

    In bf16 kernels round differently for another batch shape. So its batch is compared with single sequences twice: in
    bf16, and in fp32; the latter stands beside the distance of single bf16 sequences from fp32.
    """
    rows = Writer(vocabulary(config), seed=1, scale=scale).with_images(IMAGES)
    exact, batch32, alone32 = _values(config, rows, device, torch.float32)
    _, batch16, alone16 = _values(config, rows, device, torch.bfloat16)
    fine, coarse, noise = (
        _difference(*pair, exact) for pair in ((batch32, alone32), (batch16, alone16), (alone16, alone32))
    )
    far = _difference(batch16, alone32, exact)
    setting = f"{len(rows)} rows, 0 to {max(IMAGES)} images"
    return [
        {
            "what": "log-probs, batch against alone",
            "setting": f"fp32, {setting}",
            "max Δ log-prob": fine[0],
            "mean Δ log-prob": fine[1],
            "verdict": "same" if fine[0] < 1e-3 else "DIFFERENT",
        },
        {
            "what": "log-probs, batch against alone",
            "setting": f"bf16, {setting}",
            "max Δ log-prob": coarse[0],
            "mean Δ log-prob": coarse[1],
            "verdict": "as near to fp32 as alone" if far[1] < 1.5 * noise[1] else "FURTHER from fp32 than alone",
            "note": f"mean Δ from fp32: batch {far[1]:.2g}, alone {noise[1]:.2g}",
        },
    ]


def _values(
    config: Any, rows: Sequence[Row], device: torch.device, dtype: torch.dtype
) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """The batch, its log-probs by our path, and those of each row by a plain forward pass, at the same places."""
    model = build(config, device, torch.float32).eval()
    for parameter in model.parameters():  # the same weights in both; rotary frequencies stay fp32, as when loaded
        parameter.data = parameter.data.to(dtype)
    batch = place(rows, config, device, dtype)
    with torch.no_grad():
        together = packed(model, batch)
        alone = torch.zeros_like(together)
        for i, row in enumerate(rows):
            values = padded_logits(model, place([row], config, device, dtype, pixels=_pixels(batch, i)))
            alone[i, : values.shape[1]] = values[0]
    return batch, together.cpu(), alone.cpu()


def place(
    rows: Sequence[Row], config: Any, device: torch.device, dtype: torch.dtype, pixels: torch.Tensor | None = None
) -> Batch:
    """Rows as a batch on a device."""
    vision = config.vision_config
    channels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    batch = padded(rows, config.image_token_id, channels=channels, dtype=dtype)
    if pixels is not None:
        batch["pixel_values"] = pixels
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def _pixels(batch: Batch, row: int) -> torch.Tensor:
    patches = [int(grid.prod(dim=1).sum()) for grid in batch["image_grid_thw"].split(batch["num_images"])]
    return batch["pixel_values"].split(patches)[row]


def _difference(left: torch.Tensor, right: torch.Tensor, batch: Batch) -> tuple[float, float]:
    scored = (batch["tool_mask"] * batch["completion_mask"]).bool().cpu()
    distance = (left - right)[scored].abs()
    return float(distance.max()), float(distance.mean())
