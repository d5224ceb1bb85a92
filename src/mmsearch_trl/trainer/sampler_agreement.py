"""Whether the sampler holds the weights that are trained: its log-probs of what it sampled against the trainer's.

Both score the same tokens with what should be the same weights, so that they differ by rounding alone: by some 1e-6 in
float32, by some hundredths where one of them computes in bfloat16. Other weights of the same shape, an adapter that is
not applied, or images of another size cost tenths and more, show in nothing else, and have the policy trained on what
it never said.
"""

import torch

from mmsearch_trl.core.errors import EngineLost
from mmsearch_trl.distributed.ranks import Ranks


def check_agreement(
    sampled: torch.Tensor, trained: torch.Tensor, mask: torch.Tensor, ranks: Ranks, *, most: float, model: str
) -> None:
    """Raise on all ranks where log-probs are too far apart; a collective call.

    Args:
        sampled: What the sampler says, `(n, t)`, natural log; NaN where it says nothing.
        trained: What the trainer says, `(n, t)`.
        mask: 1 on sampled tokens, `(n, t)`.
        most: The mean difference that is borne.
        model: Name of the trained model; empty where it has none.

    Raises:
        EngineLost: the message names what can cause it.
    """
    differences = (sampled - trained).abs()[mask.bool()]
    differences = differences[~differences.isnan()].double()
    total, count = ranks.sum([float(differences.sum()), differences.numel()])
    if count and total / count > most:
        named = f" ({model})" if model else ""
        raise EngineLost(
            f"vLLM's log-probs of its own tokens are {total / count:.2f} off the trainer's on average, where rounding "
            f"makes hundredths at most: it does not sample from the weights that are trained{named}. It may serve "
            "another model of this shape (of a LoRA policy it is only sent the adapter, and the base is what it was "
            "started with), be quantised, resize images otherwise (mm_processor_kwargs), or scale positions otherwise "
            f"(rope, max_model_len). Raise max_sampler_difference ({most:g}) only where this is meant"
        )
