"""Trajectories that their batch did not wait for: `rollout_close_share` and `straggler_policy`.

A generation batch has a fixed number of rows, and the rows of one question are a group whose rewards are its baseline.
When the batch closes, the row of an unfinished trajectory stays and says nothing: no reward, so that it is out of the
group's baseline, and no token in the loss. With the policy `drop` that is all.

With `carry` the trajectory goes on beside the tasks of the next batches, under their weights, and keeps what it has
sampled. Once finished it is a *guest* on the row of a straggler of that batch, oldest first:

* Its advantage is its own reward against its own group: the rewards recorded when its batch closed, those of its
  siblings that finished late, and its own. Members that finished in time were trained without it.
* It does not count in the group whose row it takes, nor in that batch's means of rewards.
* Its log-probs are those recorded when each token was sampled. TRL's correction by importance sampling
  (`vllm_importance_sampling_correction`) weighs every token by the current policy over these, and so corrects for the
  older weights as it does for the engine's numerics. It is active with vLLM only, hence so is this policy.
* A batch without a free row leaves it waiting. After `MOST_BATCHES` it is dropped and counted.

Stragglers are kept in memory: a resumed run begins without those of the run before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from mmsearch_trl.core.completion import SamplingParams
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.trajectory import StopReason, Trajectory
from mmsearch_trl.rollout.stragglers import Unfinished
from mmsearch_trl.trainer.advantages import group_advantages
from mmsearch_trl.trainer.scores import LocalScores


if TYPE_CHECKING:
    from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer

Row = dict[str, Any]

MOST_BATCHES = 4
"""Batches after its own in which a trajectory may end and find a row; weights that are older teach little."""


@dataclass(slots=True)
class Carried:
    """A trajectory on its way.

    Attributes:
        row: Its row of the training data: what its reward function needs.
        group: Rewards known in its own group; one list for all stragglers of the group.
        batches: Rollout batches that it went through after its own.
    """

    row: Row
    unfinished: Unfinished
    group: list[float]
    batches: int = 0

    @property
    def trajectory(self) -> Trajectory:
        return self.unfinished.trajectory


class Stragglers:
    """The stragglers of one rank; nothing happens here unless the policy is `carry`.

    Raises:
        UserError: The policy is `carry` and the limits reproduce MMSearch-R1, which cuts finished responses.
    """

    def __init__(self, trainer: MMSearchGRPOTrainer) -> None:
        if trainer.args.straggler_policy == "carry" and trainer.limits.compat:
            raise UserError("straggler_policy: carry does not go with rollout.compat; set it to drop.")
        self._trainer = trainer
        self.carried: list[Carried] = []
        self.guests: dict[int, Carried] = {}
        """By the row that each takes in the present batch."""
        self._left: dict[int, Carried] = {}
        self._earned = torch.empty(0)

    @property
    def unfinished(self) -> list[Unfinished]:
        return [late.unfinished for late in self.carried if late.trajectory.stop is None]

    def seat(
        self, rows: Sequence[Row], trajectories: Sequence[Trajectory], samplings: Sequence[SamplingParams]
    ) -> tuple[list[Row], list[Trajectory]]:
        """Put guests on the rows of a batch's stragglers, and keep these to go on with."""
        rows, trajectories = list(rows), list(trajectories)
        if self._trainer.args.straggler_policy == "drop":
            return rows, trajectories
        size = self._trainer.num_generations
        groups: dict[int, list[float]] = {}
        free = [i for i, trajectory in enumerate(trajectories) if trajectory.stop is StopReason.STRAGGLER]
        for i in free:
            trajectory = replace(trajectories[i], turns=list(trajectories[i].turns), stop=None)
            self._left[i] = Carried(rows[i], Unfinished(trajectory, samplings[i]), groups.setdefault(i // size, []))
        finished = [late for late in self.carried if late.trajectory.stop and not late.trajectory.aborted]
        self.guests = dict(zip(free, finished, strict=False))
        for i, guest in self.guests.items():
            rows[i], trajectories[i] = guest.row, guest.trajectory
        return rows, trajectories

    def exclude(self, rewards: torch.Tensor, trajectories: Sequence[Trajectory]) -> list[bool]:
        """Which rows of this rank count in no baseline: those without a reward, and guests, whose rewards are noted.

        Args:
            rewards: `(n, functions)`, of this rank.
        """
        self._earned = rewards.clone()
        return [trajectory.aborted or i in self.guests for i, trajectory in enumerate(trajectories)]

    def settle(self, scores: LocalScores, advantages: torch.Tensor) -> None:
        """After a batch was scored: pay its guests, and take stock of who is left.

        Args:
            scores: Of this rank, NaN where `exclude` said so; guests get the rewards that they earned, for the traces.
            advantages: `(n,)`, of this rank; those of guests are set.
        """
        if self._trainer.args.straggler_policy == "drop":
            return
        size = self._trainer.num_generations
        totals = scores.totals.tolist()
        for i, late in self._left.items():
            first = i // size * size
            late.group[:] = [total for total in totals[first : first + size] if total == total]
        for i in self.guests:
            scores.rewards[i] = self._earned[i]
        totals = scores.totals.tolist()
        scored = {i: guest.group for i, guest in self.guests.items() if totals[i] == totals[i]}
        for i, group in scored.items():
            group.append(totals[i])
        for i, group in scored.items():
            advantages[i] = self._advantage(totals[i], group)
        self._take_stock()

    def _advantage(self, reward: float, group: Sequence[float]) -> float:
        """Of a reward in its group, which holds it; 0 where it is alone there."""
        trainer, size = self._trainer, self._trainer.num_generations
        rewards = torch.tensor([*group, *[torch.nan] * (size - len(group))], dtype=torch.float64)
        advantages = group_advantages(rewards, size, trainer.scale_rewards, trainer.args.advantage_eps)
        return float(advantages[group.index(reward)])

    def _take_stock(self) -> None:
        """Count, drop who is too old or was broken, and queue the new behind the old."""
        guests = set(map(id, self.guests.values()))
        staying = [late for late in self.carried if id(late) not in guests]
        for late in staying:
            late.batches += 1
        kept = [late for late in staying if late.batches < MOST_BATCHES and not late.trajectory.aborted]
        device = self._trainer.accelerator.device
        counts = torch.tensor([[len(guests), len(staying) - len(kept), len(self._earned)]], device=device)
        seated, dropped, rows = self._trainer.accelerator.gather(counts).sum(dim=0).tolist()
        self._trainer.append_metrics({"rollout/carried": seated / rows, "rollout/carried_dropped": dropped / rows})
        self.carried = [*kept, *self._left.values()]
        self.guests, self._left = {}, {}
