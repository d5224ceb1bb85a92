"""Group-relative advantages: how much better a trajectory did than the others of its prompt.

The standard deviation is unbiased, and `eps` is added to it, not put under a root. A group of one has nothing to be
compared with and keeps its raw reward. Sums run in float64, because equal float32 rewards can differ from their
float32 mean by more than `eps` forgives.
"""

from typing import Literal

import torch


RewardScale = Literal["group", "batch", "none"]


def group_advantages(
    rewards: torch.Tensor, group_size: int, scale: RewardScale = "group", eps: float = 1e-6
) -> torch.Tensor:
    """Subtract each group's mean and divide by a standard deviation.

    Args:
        rewards: `(n,)`, the trajectories of one prompt adjacent; `n` is a multiple of `group_size`. NaN, a trajectory
            without a reward, is left out of mean and deviation and gets the advantage 0.
        scale: Divide by the standard deviation of the `group`, of the whole `batch`, or by `none`.

    Returns:
        `(n,)` in the dtype of `rewards`, or float32 for integers; 0 wherever all rewards of a group are equal.

    Raises:
        ValueError: The rewards do not divide into groups, or `scale` is unknown.
    """
    grouped = _grouped(rewards, group_size)
    dtype = rewards.dtype if rewards.is_floating_point() else torch.float32
    centred = grouped - grouped.nanmean(dim=1, keepdim=True) if group_size > 1 else grouped
    if scale == "group":
        std = _nanstd(grouped) if group_size > 1 else torch.ones_like(grouped)
    elif scale == "batch":
        std = _nanstd(grouped.view(1, -1)) if grouped.numel() > 1 else torch.ones_like(grouped)
    elif scale == "none":
        return centred.nan_to_num(nan=0.0).flatten().to(dtype)
    else:
        raise ValueError(f"scale must be group, batch or none; got {scale!r}")
    return (centred / (std + eps)).nan_to_num(nan=0.0).flatten().to(dtype)


def informative_groups(rewards: torch.Tensor, group_size: int) -> torch.Tensor:
    """Mark the groups that teach something: those whose rewards are not all equal.

    Args:
        rewards: `(n,)`, the trajectories of one prompt adjacent; NaN where a trajectory has none.

    Returns:
        Bool `(n / group_size,)`. A group of one never differs from itself and is False.

    Raises:
        ValueError: The rewards do not divide into groups.
    """
    grouped = _grouped(rewards, group_size)
    return grouped.nan_to_num(-torch.inf).amax(dim=1) > grouped.nan_to_num(torch.inf).amin(dim=1)


def _nanstd(values: torch.Tensor) -> torch.Tensor:
    """Unbiased deviation of each row `(g, n)` over what is not NaN, `(g, 1)`; 0 for fewer than two values."""
    count = (~values.isnan()).sum(dim=1, keepdim=True)
    squares = (values - values.nanmean(dim=1, keepdim=True)).square().nansum(dim=1, keepdim=True)
    return (squares / (count - 1).clamp(min=1)).sqrt()


def _grouped(rewards: torch.Tensor, group_size: int) -> torch.Tensor:
    if rewards.dim() != 1 or group_size < 1 or rewards.numel() % group_size:
        raise ValueError(f"rewards of shape {tuple(rewards.shape)} do not divide into groups of {group_size}")
    return rewards.double().view(-1, group_size)
