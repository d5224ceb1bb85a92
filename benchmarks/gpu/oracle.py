"""Are log-probs of a padded batch with images those of each sequence alone? In fp32 and in bf16."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from benchmarks.gpu.model import attention, build, rounded, vocabulary
from benchmarks.gpu.passes import Batch, packed, padded_logits
from benchmarks.gpu.report import failure
from benchmarks.gpu.rows import Row, Writer, padded


WHAT = "log-probs, batch against alone"
IMAGES = (0, 6, 1, 3, 0, 2, 5, 4)


def oracle(config: Any, device: torch.device, kinds: Sequence[str], *, scale: float) -> Iterator[dict[str, Any]]:
    """A table row for fp32, and one for bf16 with each kind of attention: the differences at scored tokens.

    In bf16 kernels round differently for another batch shape. So its batch is compared with single sequences twice: in
    bf16, and in fp32; the latter stands beside the distance of single bf16 sequences from fp32.
    """
    rows = Writer(vocabulary(config), seed=1, scale=scale).with_images(IMAGES)
    counts = f"{len(rows)} rows, 0 to {max(IMAGES)} images"
    batch, together, exact = _values(config, rows, device, torch.float32, "sdpa")
    most, mean = difference(together, exact, batch)
    yield _row(f"fp32, sdpa, {counts}", most, mean) | {"verdict": "same" if most < 1e-3 else "DIFFERENT"}
    for kind in kinds:
        setting = f"bf16, {kind}, {counts}"
        try:
            _, together, alone = _values(config, rows, device, torch.bfloat16, kind)
        except Exception as error:
            yield {"what": WHAT, "setting": setting, "note": failure(error)}
            continue
        far, noise = (difference(values, exact, batch)[1] for values in (together, alone))
        yield _row(setting, *difference(together, alone, batch)) | {
            "verdict": "as near to fp32 as alone" if far < 1.5 * noise else "FURTHER from fp32 than alone",
            "note": f"mean Δ from fp32: batch {far:.2g}, alone {noise:.2g}",
        }


def _row(setting: str, most: float, mean: float) -> dict[str, Any]:
    return {"what": WHAT, "setting": setting, "max Δ log-prob": most, "mean Δ log-prob": mean}


def _values(
    config: Any, rows: Sequence[Row], device: torch.device, dtype: torch.dtype, kind: str
) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """The batch, its log-probs by our path, and those of each row by a plain forward pass, at the same places."""
    model = rounded(build(config, device, torch.float32), dtype).eval()
    batch = place(rows, config, device, dtype)
    with torch.no_grad(), attention(model, kind):
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


def difference(left: torch.Tensor, right: torch.Tensor, batch: Batch) -> tuple[float, float]:
    """The largest and the mean difference at scored tokens."""
    scored = (batch["tool_mask"] * batch["completion_mask"]).bool().cpu()
    distance = (left - right)[scored].abs()
    return float(distance.max()), float(distance.mean())
