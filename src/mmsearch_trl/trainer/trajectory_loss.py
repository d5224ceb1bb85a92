"""MMSearch-R1's trajectory-level policy loss, which no loss type of TRL computes.

Every token's probability ratio is clipped, the clipped ratios of a trajectory are multiplied, and the PPO minimum is
taken per trajectory; trajectories are averaged with equal weight. TRL's `importance_sampling_level="sequence"` takes
the geometric mean of the ratios and clips that instead.
"""

import math

import torch


def trajectory_policy_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> torch.Tensor:
    """Return the loss, a scalar.

    Args:
        log_probs: Of the trained policy, `(n, t)`, natural log.
        old_log_probs: Of the sampling policy, `(n, t)`.
        advantages: `(n,)`.
        mask: 1 on sampled tokens, 0 on replies and padding, `(n, t)`.
        clip_low: Lower clip: a token's ratio stays above `1 - clip_low`.
        clip_high: Upper clip: a token's ratio stays below `1 + clip_high`.
    """
    log_ratio = (log_probs - old_log_probs).masked_fill(mask == 0, 0.0)
    clipped = log_ratio.clamp(math.log1p(-clip_low), math.log1p(clip_high))
    ratio, clipped_ratio = log_ratio.sum(dim=1).exp(), clipped.sum(dim=1).exp()
    return torch.maximum(-advantages * ratio, -advantages * clipped_ratio).mean()
