"""Three ways to the same log-probs of a micro-batch: this project's, TRL's, and the plainest."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from mmsearch_trl.trainer.log_probs import ScoredBatch, score_tokens


Batch = dict[str, Any]
_OF_IMAGES = ("num_images", "image_grid_thw", "pixel_values")


def packed(model: Any, batch: Batch) -> torch.Tensor:
    """`(b, c)`: rows moved together and trimmed, labels on sampled tokens, LM head in chunks."""
    scored = ScoredBatch(
        input_ids=_ids(batch),
        attention_mask=_mask(batch),
        score_mask=batch["tool_mask"] * batch["completion_mask"],
        mm_token_type_ids=batch["mm_token_type_ids"],
        **{name: batch[name] for name in _OF_IMAGES},
    )
    return score_tokens(model, scored, chunk=len(scored.input_ids), entropy=False)[0]


def padded_labels(model: Any, batch: Batch) -> torch.Tensor:
    """`(b, c)` as TRL 1.16 computes it: the generation batch's width, labels on replies too, LM head in chunks."""
    labels = _ids(batch).masked_fill(_mask(batch) == 0, -100)
    width = batch["completion_ids"].shape[1]
    labels[:, :-width] = -100
    return model(**_inputs(batch), labels=labels, fused_lm_head=True).log_probs[:, -width:]


def padded_logits(model: Any, batch: Batch) -> torch.Tensor:
    """`(b, c)` by way of all logits of the completion, at the generation batch's width."""
    width = batch["completion_ids"].shape[1]
    logits = model(**_inputs(batch), use_cache=False, logits_to_keep=width + 1).logits[:, :-1].float()
    chosen = logits.gather(2, batch["completion_ids"][..., None])[..., 0]
    return chosen - logits.logsumexp(dim=-1)


def select(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rows with their images, at the width of the whole."""
    grids = batch["image_grid_thw"].split(batch["num_images"])
    patches = batch["pixel_values"].split([int(grid.prod(dim=1).sum()) for grid in grids])
    chosen = {name: values[list(rows)] for name, values in batch.items() if name not in _OF_IMAGES}
    return chosen | {
        "num_images": [batch["num_images"][i] for i in rows],
        "image_grid_thw": torch.cat([grids[i] for i in rows]),
        "pixel_values": torch.cat([patches[i] for i in rows]),
    }


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """Tokens forwarded by each call of the model."""
    seen: list[int] = []

    def note(module: Any, args: Any, inputs: dict[str, Any]) -> None:
        seen.append(inputs["input_ids"].numel())

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def _ids(batch: Batch) -> torch.Tensor:
    return torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)


def _mask(batch: Batch) -> torch.Tensor:
    return torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)


def _inputs(batch: Batch) -> dict[str, Any]:
    inputs = {
        "input_ids": _ids(batch),
        "attention_mask": _mask(batch),
        "mm_token_type_ids": batch["mm_token_type_ids"],
    }
    if sum(batch["num_images"]):
        inputs |= {"pixel_values": batch["pixel_values"], "image_grid_thw": batch["image_grid_thw"]}
    return inputs
