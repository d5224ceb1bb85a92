"""The learning-rate schedule of MMSearch-R1: a sigmoid fall centred on a step.

Upstream names it a warm-up, but it starts at the full rate, passes the middle at `warmup_steps`, is done after about
twice as many steps, and then stays at `1 - ratio` of the rate for good.
"""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mmsearch_trl.core.errors import UserError


def sigmoid_decay_factor(step: int, ratio: float, warmup_steps: int) -> float:
    """The factor on the learning rate after `step` optimizer steps.

    Args:
        ratio: Share of the rate that is taken away in the end, 0 to 1.
        warmup_steps: The step at which half of it is gone; a tenth of it is the width of the fall.

    Raises:
        UserError: `ratio` or `warmup_steps` is out of range.
    """
    if not 0 <= ratio <= 1:
        raise UserError(f"the sigmoid decay ratio must be from 0 to 1, got {ratio!r}")
    if warmup_steps < 1:
        raise UserError(f"the sigmoid decay needs warmup_steps >= 1, got {warmup_steps!r}")
    low = 1 - ratio
    # 1 / (1 + exp(x)), written so that a step far past the fall does not overflow.
    remaining = 0.5 * (1 - math.tanh((step - warmup_steps) / (0.2 * warmup_steps)))
    return (1 - low) * remaining + low


def sigmoid_decay(optimizer: Optimizer, ratio: float, warmup_steps: int) -> LambdaLR:
    """A scheduler that multiplies every group's rate by `sigmoid_decay_factor`; step it once per optimizer step.

    Raises:
        UserError: `ratio` or `warmup_steps` is out of range.
    """
    return LambdaLR(optimizer, lambda step: sigmoid_decay_factor(step, ratio, warmup_steps))
