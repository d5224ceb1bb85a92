"""How the rows of a generation batch are dealt to micro-batches: by length, where the loss does not mind.

TRL shuffles a generation batch and cuts it, so that a short trajectory is padded to the longest that chance put
beside it. Here the rows of one optimizer step are put in order of length before they are cut. Which rows make up a
step stays chance's choice, the number and size of micro-batches stay TRL's, and so does the gradient of the step: each
row's share of it is the same in whichever micro-batch it lies. Ranks sort alike, so long micro-batches meet long ones.
"""

from collections.abc import Sequence
from typing import Any

import torch
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.trainer.log_probs import longest_first


MicroBatch = dict[str, Any]

# Rows are averaged with equal weight (grpo, sapo, luspo), or sums are divided by a number that is the same for all
# micro-batches (dr_grpo, and by the tokens of the whole generation batch dapo, cispo, vespo). Not so bnpo: it divides
# by the tokens of each micro-batch. A loss type that is not known here keeps TRL's cut.
_ROW_BY_ROW = frozenset({"grpo", "sapo", "luspo", "dr_grpo", "dapo", "cispo", "vespo"})


def rows_may_move(args: MMSearchGRPOConfig) -> bool:
    """Whether a step's gradient is the same however its rows are dealt to micro-batches."""
    if args.trajectory_level_loss:
        # Trajectories count equally, but KL term and entropy bonus are means over the tokens of a micro-batch.
        return args.beta == 0.0 and args.entropy_coef == 0.0
    # An entropy bonus is a mean over the tokens of a micro-batch, and the quantile of entropies is taken over them.
    means_over_tokens = args.entropy_coef != 0.0 or args.use_adaptive_entropy or args.top_entropy_quantile < 1.0
    return args.loss_type in _ROW_BY_ROW and not means_over_tokens


def micro_batches_per_step(args: MMSearchGRPOConfig) -> int:
    """How many consecutive micro-batches of a generation batch always belong to the same optimizer step."""
    accumulated, generated = args.gradient_accumulation_steps, int(args.steps_per_generation or 1)
    if accumulated % generated == 0:
        return generated
    # Where neither divides the other, steps begin at another micro-batch on every pass over the generation batch.
    return accumulated if generated % accumulated == 0 else 1


def deal_by_length(micro_batches: Sequence[MicroBatch], args: MMSearchGRPOConfig) -> list[MicroBatch]:
    """The same rows in as many micro-batches of the same size, of like length within each optimizer step.

    Args:
        micro_batches: As TRL buffers them: each entry has rows first, except for scalars and for `pixel_values` and
            `image_grid_thw`, which belong to rows by `num_images`.
    """
    size = micro_batches_per_step(args)
    if size == 1 or not rows_may_move(args):
        return list(micro_batches)
    dealt: list[MicroBatch] = []
    for start in range(0, len(micro_batches), size):
        rows = _join([split_pixel_values_by_grid(batch) for batch in micro_batches[start : start + size]])
        order = longest_first(_lengths(rows).tolist())
        ordered = {name: _take(values, order) for name, values in rows.items()}
        cut: list[Any] = split_tensor_dict(ordered, size)
        dealt += [unsplit_pixel_values_by_grid(batch) for batch in cut]
    return dealt


def forwarded_per_token(micro_batches: Sequence[MicroBatch]) -> float:
    """Tokens that a pass over the micro-batches forwards, per token that is not padding; at best 1."""
    lengths = torch.stack([_lengths(batch) for batch in micro_batches])
    widest = lengths.amax(dim=1, keepdim=True).expand_as(lengths)
    return float(widest.sum() / lengths.sum())


def _lengths(batch: MicroBatch) -> torch.Tensor:
    return batch["prompt_mask"].sum(dim=1) + batch["completion_mask"].sum(dim=1)


def _join(batches: Sequence[MicroBatch]) -> MicroBatch:
    return {name: _concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _concatenate(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], list):
        return [item for part in parts for item in part]
    return torch.cat(list(parts)) if parts[0].ndim else parts[0]


def _take(values: Any, order: Sequence[int]) -> Any:
    if isinstance(values, list):
        return [values[i] for i in order]
    return values[list(order)] if values.ndim else values
