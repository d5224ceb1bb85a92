"""MMSearch-R1's trajectory-level policy loss, which no loss type of TRL computes.

Every token's probability ratio is clipped, the clipped ratios of a trajectory are multiplied, and the PPO minimum is
taken per trajectory; trajectories are averaged with equal weight. TRL's `importance_sampling_level="sequence"` takes
the geometric mean of the ratios and clips that instead.
"""

import math
from collections.abc import Mapping

import torch

from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.trainer.kl import bounded_reference, k3


def trajectory_policy_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the loss, a scalar.

    Args:
        log_probs: Of the trained policy, `(n, t)`, natural log.
        old_log_probs: Of the sampling policy, `(n, t)`.
        advantages: `(n,)`.
        mask: 1 on sampled tokens, 0 on replies and padding, `(n, t)`.
        clip_low: Lower clip: a token's ratio stays above `1 - clip_low`.
        clip_high: Upper clip: a token's ratio stays below `1 + clip_high`.
        weights: Of the trajectories, `(n, 1)`: how much likelier they are to the trained policy than to the sampler.
    """
    log_ratio = (log_probs - old_log_probs).masked_fill(mask == 0, 0.0)
    clipped = log_ratio.clamp(math.log1p(-clip_low), math.log1p(clip_high))
    ratio, clipped_ratio = log_ratio.sum(dim=1).exp(), clipped.sum(dim=1).exp()
    losses = torch.maximum(-advantages * ratio, -advantages * clipped_ratio)
    return (losses if weights is None else losses * weights[:, 0]).mean()


def trajectory_loss(
    log_probs: torch.Tensor, entropies: torch.Tensor, inputs: Mapping[str, torch.Tensor], args: MMSearchGRPOConfig
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of one micro-batch, a scalar, and what is logged of it: the above, an entropy bonus, the k3 KL term.

    Args:
        log_probs: Of the trained policy, `(n, t)`, natural log.
        entropies: Of its distributions, `(n, t)`.
        inputs: As TRL buffers them; `tool_mask` marks sampled tokens.
    """
    mask = inputs["completion_mask"] * inputs["tool_mask"]
    tokens = mask.sum().clamp(min=1)
    old = inputs.get("old_per_token_logps")
    old = log_probs.detach() if old is None else old
    loss = trajectory_policy_loss(
        log_probs,
        old,
        inputs["advantages"],
        mask,
        args.epsilon,
        args.epsilon if args.epsilon_high is None else args.epsilon_high,
        inputs.get("importance_sampling_ratio"),
    )
    entropy = (entropies * mask).sum() / tokens
    loss = loss - args.entropy_coef * entropy
    metrics = {"entropy": float(entropy.detach())}
    if args.beta != 0.0:
        reference = inputs["ref_per_token_logps"]
        estimate = k3(bounded_reference(reference, log_probs) if args.kl_clamp else reference, log_probs)
        if args.use_bias_correction_kl:
            estimate = estimate * (log_probs - old).exp()
        kl = (estimate * mask).sum() / tokens
        loss = loss + args.beta * kl
        metrics["kl"] = float(kl.detach())
    return loss, metrics
