"""Per-token log-probs of a padded batch, forwarding as little as can be.

TRL pads every micro-batch to the width of the whole generation batch, with room for the longest prompt and, beside it,
for the longest completion; it sends replies through the LM head, and cannot take a micro-batch without images out of a
batch with some. Here the tokens of each row are moved together, so that a chunk is as wide as its longest row; only
scored tokens get a label; and image inputs are passed only where there are images. Where a batch is forwarded in
chunks, rows of like length share one. Values come back at the places that they would have had.

The number of forward passes depends on shapes alone, never on lengths: with sharded weights, ranks that disagreed
about it would wait for each other for ever. That is why a micro-batch of the loss is not split further by length.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.trainer.blank_picture import BlankPicture


VISION_INPUTS = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
"""What a forward pass takes beside tokens, under the names of TRL's batches."""


class Chunk(NamedTuple):
    """What one forward pass takes.

    Attributes:
        rows: Which rows of the batch these are.
        columns: `(k, w)`, the column of the batch that each token comes from; a row's padding is at its end.
        inputs: For the model, labels included; a blank picture makes them wider than `w`.
    """

    rows: list[int]
    columns: torch.Tensor
    inputs: dict[str, Any]


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
        blank: Stands in where a forward pass has no image, if other ranks have one.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    score_mask: torch.Tensor
    pixel_values: torch.Tensor | None
    image_grid_thw: torch.Tensor | None
    num_images: list[int] | None
    mm_token_type_ids: torch.Tensor | None
    blank: BlankPicture | None = None

    @classmethod
    def of(
        cls,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        score_mask: torch.Tensor,
        inputs: Mapping[str, Any],
        blank: BlankPicture | None = None,
    ) -> "ScoredBatch":
        """From the arguments of TRL's `_get_per_token_logps_and_entropies`, those after the mask in `inputs`.

        Raises:
            UserError: The model takes inputs of another vision family, or an auxiliary loss is asked for.
        """
        given = [name for name, value in inputs.items() if value is not None and value is not False]
        unused = [name for name in given if name not in VISION_INPUTS]
        if unused:
            raise UserError(f"MMSearchGRPOTrainer supports Qwen-VL style inputs; this model also needs {unused}.")
        vision = {name: inputs.get(name) for name in VISION_INPUTS}
        return cls(input_ids=input_ids, attention_mask=attention_mask, score_mask=score_mask, blank=blank, **vision)

    @classmethod
    def of_generated(cls, batch: Mapping[str, Any], blank: BlankPicture | None = None) -> "ScoredBatch":
        """From a generation batch as TRL has it; what is scored are its sampled tokens."""
        return cls.of(
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
            batch["tool_mask"] * batch["completion_mask"],
            {name: batch.get(name) for name in VISION_INPUTS},
            blank,
        )

    def chunks(self, size: int, chosen: Sequence[int] | None = None) -> Iterator[Chunk]:
        """The rows, or chosen ones, `size` at a time; the longest first where there is more than one chunk."""
        lengths = self.attention_mask.sum(dim=1).tolist()
        order = list(range(len(lengths)) if chosen is None else chosen)
        if size < len(order):
            order = [order[i] for i in longest_first([lengths[i] for i in order])]
        tokens_first = self.attention_mask.argsort(dim=1, descending=True, stable=True)
        padded = {"input_ids": self.input_ids, "attention_mask": self.attention_mask, "labels": self._labels()}
        if self.mm_token_type_ids is not None:
            padded["mm_token_type_ids"] = self.mm_token_type_ids
        images = self._images()
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            columns = tokens_first[rows, : max(lengths[i] for i in rows)]
            inputs: dict[str, Any] = {name: values[rows].gather(1, columns) for name, values in padded.items()}
            if any(len(images[i][0]) for i in rows):
                inputs["image_grid_thw"] = torch.cat([images[i][0] for i in rows])
                inputs["pixel_values"] = torch.cat([images[i][1] for i in rows])
            elif self.blank is not None:
                inputs = self.blank.behind(inputs)
            yield Chunk(rows, columns, inputs)

    def _labels(self) -> torch.Tensor:
        width = self.score_mask.shape[1]
        scored = torch.zeros_like(self.attention_mask, dtype=torch.bool)
        scored[:, -width:] = (self.score_mask * self.attention_mask[:, -width:]).bool()
        return self.input_ids.masked_fill(~scored, -100)

    def _images(self) -> Sequence[tuple[torch.Tensor, torch.Tensor]]:
        """Grids and patches of each row."""
        if self.pixel_values is None or self.image_grid_thw is None or self.num_images is None:
            return [(torch.empty(0, 3), torch.empty(0))] * len(self.input_ids)
        per_image = iter(self.image_grid_thw.prod(dim=1).tolist())
        patches = [sum(next(per_image) for _ in range(count)) for count in self.num_images]
        return list(zip(self.image_grid_thw.split(self.num_images), self.pixel_values.split(patches), strict=True))


def score_tokens(
    model: Any, batch: ScoredBatch, *, chunk: int, entropy: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probs and, if wanted, entropies of the completion tokens, `(b, c)` each; 0 where nothing is scored.

    Args:
        model: One that `trl.trainer.utils.add_fused_lm_head` has patched, as `GRPOTrainer` does.
        chunk: Rows forwarded at a time.
    """
    log_probs: list[torch.Tensor] = []
    entropies: list[torch.Tensor] = []
    order: list[int] = []
    for rows, columns, inputs in batch.chunks(chunk):
        outputs = model(**inputs, fused_lm_head=True)
        order += rows
        log_probs.append(put_back(outputs.log_probs, columns, batch))
        if entropy:
            entropies.append(put_back(outputs.entropy, columns, batch))
    places = torch.tensor(order, device=batch.input_ids.device).argsort()
    return torch.cat(log_probs)[places], torch.cat(entropies)[places] if entropy else None


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Row numbers by falling length: what does not fit in memory shows at once, and later blocks fit into earlier."""
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])


def put_back(values: torch.Tensor, columns: torch.Tensor, batch: ScoredBatch) -> torch.Tensor:
    """`(k, c)` from the values of a forward pass, whose entry j < w - 1 belongs to token j + 1 of the chunk."""
    padded = values.new_zeros(len(values), batch.input_ids.shape[1])
    return padded.scatter(1, columns[:, 1:], values[:, : columns.shape[1] - 1])[:, -batch.score_mask.shape[1] :]
