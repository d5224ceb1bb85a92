"""Per-token log-probs of a padded batch, forwarding as little as can be.

TRL pads every micro-batch to the width of the whole generation batch, sends replies through the LM head, and cannot
take a micro-batch without images out of a batch with some. Here each chunk is trimmed to its own tokens, only scored
tokens get a label, and image inputs are passed only where there are images. Values at the scored tokens are the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredBatch:
    """A left-padded prompt and right-padded completion per row, with the images of all rows in row order.

    Attributes:
        input_ids: `(b, p + c)`.
        attention_mask: `(b, p + c)`, 1 on tokens.
        score_mask: `(b, c)`, 1 on the completion tokens whose log-prob is wanted.
        pixel_values: `(patches, channels)` or None.
        image_grid_thw: `(images, 3)` or None.
        num_images: Images of each row.
        mm_token_type_ids: `(b, p + c)`, 1 on image pads, or None for a model without vision.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    score_mask: torch.Tensor
    pixel_values: torch.Tensor | None
    image_grid_thw: torch.Tensor | None
    num_images: list[int] | None
    mm_token_type_ids: torch.Tensor | None

    def chunks(self, size: int) -> Iterator[tuple[slice, dict[str, Any]]]:
        """Model inputs for `size` rows at a time: the columns they span, and the trimmed inputs with labels."""
        first_image = first_patch = 0
        for start in range(0, len(self.input_ids), size):
            rows = slice(start, start + size)
            columns = _span(self.attention_mask[rows])
            inputs: dict[str, Any] = {
                "input_ids": self.input_ids[rows, columns],
                "attention_mask": self.attention_mask[rows, columns],
                "labels": self._labels(rows)[:, columns],
            }
            if self.mm_token_type_ids is not None:
                inputs["mm_token_type_ids"] = self.mm_token_type_ids[rows, columns]
            images = sum(self.num_images[rows]) if self.num_images is not None else 0
            if images and self.pixel_values is not None and self.image_grid_thw is not None:
                grids = self.image_grid_thw[first_image : first_image + images]
                patches = int(grids.prod(dim=1).sum())
                inputs["image_grid_thw"] = grids
                inputs["pixel_values"] = self.pixel_values[first_patch : first_patch + patches]
                first_image, first_patch = first_image + images, first_patch + patches
            yield columns, inputs

    def _labels(self, rows: slice) -> torch.Tensor:
        labels = torch.full_like(self.input_ids[rows], -100)
        width = self.score_mask.shape[1]
        scored = (self.score_mask[rows] * self.attention_mask[rows, -width:]).bool()
        labels[:, -width:][scored] = self.input_ids[rows, -width:][scored]
        return labels


def score_tokens(
    model: Any, batch: ScoredBatch, *, chunk: int, entropy: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probs and, if wanted, entropies of the completion tokens, `(b, c)` each; 0 where nothing is scored.

    Args:
        model: One that `trl.trainer.utils.add_fused_lm_head` has patched, as `GRPOTrainer` does.
        chunk: Rows forwarded at a time.
    """
    width = batch.input_ids.shape[1]
    prompt_width = width - batch.score_mask.shape[1]
    log_probs: list[torch.Tensor] = []
    entropies: list[torch.Tensor] = []
    for columns, inputs in batch.chunks(chunk):
        outputs = model(**inputs, fused_lm_head=True)
        # Entry j of the outputs belongs to column j + 1 of the trimmed chunk.
        skip, tail = prompt_width - columns.start - 1, width - columns.stop
        log_probs.append(torch.nn.functional.pad(outputs.log_probs[:, skip:], (0, tail)))
        if entropy:
            entropies.append(torch.nn.functional.pad(outputs.entropy[:, skip:], (0, tail)))
    return torch.cat(log_probs), torch.cat(entropies) if entropy else None


def _span(attention_mask: torch.Tensor) -> slice:
    """Columns from the first to the last token of any row."""
    used = attention_mask.any(dim=0).nonzero()
    return slice(int(used[0]), int(used[-1]) + 1)
