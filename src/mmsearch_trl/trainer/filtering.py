"""Group filtering: train only on prompts whose rollouts earned different rewards, and roll out others instead.

A group whose rewards are all equal has no advantage and teaches nothing. As in MMSearch-R1 (`filter_groups`), whole
batches are rolled out until enough informative prompts have come together, and the surplus is cut.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import torch

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.trainer.advantages import informative_groups


if TYPE_CHECKING:
    from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer


def collect_informative(
    trainer: MMSearchGRPOTrainer, rows: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[Trajectory]]:
    """Roll out the rows and, for the groups that teach nothing, other rows of the training data.

    New prompts are drawn at random by step and rank, so a resumed run draws the same ones. Every rank rolls out as
    many batches as the one that needs most. Reward functions run once more on what is kept.

    Raises:
        UserError: A rank's share of a batch is no whole number of groups.
        RuntimeError: `max_refills` further batches did not bring enough.
    """
    group, wanted = trainer.num_generations, len(rows)
    if wanted % group:
        raise UserError(
            f"filter_zero_variance_groups needs whole groups on every rank: per_device_train_batch_size * "
            f"steps_per_generation is {wanted}, which num_generations ({group}) does not divide."
        )
    kept_rows: list[dict[str, Any]] = []
    kept: list[Trajectory] = []
    for refill in range(trainer.args.max_refills + 1):
        fresh, trajectories = trainer.collect(rows)
        # A broken rollout has no reward; at 0 it may keep a group in, and its own tokens stay out of the loss.
        rewards = torch.tensor([scored.reward or 0.0 for scored in trainer.score(fresh, trajectories)])
        # A rollout that was broken off earned nothing, and does not make its group differ either.
        broken = torch.tensor([trajectory.aborted for trajectory in trajectories])
        rewards = rewards.masked_fill(broken, torch.nan)
        for i in informative_groups(rewards, group).nonzero().flatten().tolist():
            members = slice(i * group, (i + 1) * group)
            kept_rows, kept = kept_rows + fresh[members], kept + trajectories[members]
        enough = torch.tensor([len(kept) >= wanted], device=trainer.accelerator.device)
        if bool(trainer.accelerator.gather(enough).all()):
            trainer.append_metrics({"train/generation_batches": refill + 1.0})
            return kept_rows[:wanted], kept[:wanted]
        rng = random.Random(f"{trainer.args.seed}/{trainer.generations}/{trainer.accelerator.process_index}")
        chosen = rng.choices(range(len(trainer.train_dataset)), k=wanted // group)
        rows = [dict(trainer.train_dataset[i]) for i in chosen for _ in range(group)]
    raise RuntimeError(
        f"filter_zero_variance_groups: {trainer.args.max_refills + 1} batches held {len(kept) // group} prompts with "
        f"differing rewards, {wanted // group} are needed. Raise max_refills, or check that the reward varies."
    )
