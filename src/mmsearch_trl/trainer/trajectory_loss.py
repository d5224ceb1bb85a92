"""MMSearch-R1's trajectory-level policy loss, which no loss type of TRL computes.

Every token's probability ratio is clipped, the clipped ratios of a trajectory are multiplied, and the PPO minimum is
taken per trajectory; trajectories are averaged with equal weight. TRL's `importance_sampling_level="sequence"` takes
the geometric mean of the ratios and clips that instead.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch


if TYPE_CHECKING:
    from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer


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


def trajectory_loss(trainer: MMSearchGRPOTrainer, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The loss of one micro-batch in the place of `GRPOTrainer._compute_loss`: the above, plus the k3 KL term.

    Args:
        inputs: As TRL buffers them; `tool_mask` marks sampled tokens.
    """
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    mask = inputs["completion_mask"] * inputs["tool_mask"]
    log_probs, entropies, _ = trainer._get_per_token_logps_and_entropies(
        model,
        ids,
        attention,
        mask.shape[1],
        compute_entropy=True,
        pixel_values=inputs.get("pixel_values"),
        image_grid_thw=inputs.get("image_grid_thw"),
        num_images=inputs.get("num_images"),
        mm_token_type_ids=inputs.get("mm_token_type_ids"),
    )
    assert entropies is not None
    old = inputs.get("old_per_token_logps")
    args = trainer.args
    loss = trajectory_policy_loss(
        log_probs,
        log_probs.detach() if old is None else old,
        inputs["advantages"],
        mask,
        args.epsilon,
        args.epsilon if args.epsilon_high is None else args.epsilon_high,
    )
    tokens = mask.sum().clamp(min=1)
    metrics = {"entropy": float((entropies * mask).sum() / tokens)}
    if trainer.beta != 0.0:
        difference = inputs["ref_per_token_logps"] - log_probs
        kl = ((difference.exp() - difference - 1) * mask).sum() / tokens
        loss = loss + trainer.beta * kl
        metrics["kl"] = float(kl.detach())
    trainer.append_metrics(metrics)
    return loss / (trainer.current_gradient_accumulation_steps if trainer.model.training else 1)
