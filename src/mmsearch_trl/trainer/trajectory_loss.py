"""MMSearch-R1's trajectory-level policy loss, which no loss type of TRL computes.

Every token's probability ratio is clipped, the clipped ratios of a trajectory are multiplied, and the PPO minimum is
taken per trajectory; trajectories are averaged with equal weight. TRL's `importance_sampling_level="sequence"` takes
the geometric mean of the ratios and clips that instead.
"""

import math
from collections.abc import Mapping

import torch

from mmsearch_trl.trainer.config import MMSearchGRPOConfig


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


def trajectory_loss(
    log_probs: torch.Tensor, entropies: torch.Tensor, inputs: Mapping[str, torch.Tensor], args: MMSearchGRPOConfig
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of one micro-batch, a scalar, and what is logged of it: the above, plus the k3 KL term.

    Args:
        log_probs: Of the trained policy, `(n, t)`, natural log.
        entropies: Of its distributions, `(n, t)`.
        inputs: As TRL buffers them; `tool_mask` marks sampled tokens.
    """
    mask = inputs["completion_mask"] * inputs["tool_mask"]
    old = inputs.get("old_per_token_logps")
    loss = trajectory_policy_loss(
        log_probs,
        log_probs.detach() if old is None else old,
        inputs["advantages"],
        mask,
        args.epsilon,
        args.epsilon if args.epsilon_high is None else args.epsilon_high,
    )
    tokens = mask.sum().clamp(min=1)
    metrics = {"entropy": float((entropies.detach() * mask).sum() / tokens)}
    if args.beta != 0.0:
        difference = inputs["ref_per_token_logps"] - log_probs
        kl = ((difference.exp() - difference - 1) * mask).sum() / tokens
        loss = loss + args.beta * kl
        metrics["kl"] = float(kl.detach())
    return loss, metrics
