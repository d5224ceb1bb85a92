"""What the reward functions said about this rank's trajectories."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from mmsearch_trl.core.reward import ScoredTrajectory
from mmsearch_trl.core.trajectory import Trajectory


PARTS = ("accuracy", "format", "searches")
"""Columns in which the reward function reports each trajectory's parts (TRL's `log_extra`)."""


@dataclass(frozen=True, slots=True)
class LocalScores:
    """Rewards of the trajectories of one rank.

    Attributes:
        rewards: `(n, functions)`, NaN where a function gave none or the rollout was broken.
        weights: `(functions,)`.
        parts: By name of `PARTS`, one value per trajectory.
    """

    rewards: torch.Tensor
    weights: torch.Tensor
    parts: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def totals(self) -> torch.Tensor:
        """Weighted sums, `(n,)`; NaN where nothing was scored."""
        totals = (self.rewards * self.weights.to(self.rewards)).nansum(dim=1)
        return totals.masked_fill(self.rewards.isnan().all(dim=1), torch.nan)

    def of(
        self, trajectories: Sequence[Trajectory], advantages: Sequence[float] | None = None
    ) -> list[ScoredTrajectory]:
        """Each trajectory with its reward, by part; a reward that is NaN becomes None."""
        totals = self.totals.tolist()
        return [
            ScoredTrajectory(
                trajectory=trajectory,
                reward=None if totals[i] != totals[i] else totals[i],
                rewards={name: values[i] for name, values in self.parts.items()},
                advantage=advantages[i] if advantages is not None else None,
            )
            for i, trajectory in enumerate(trajectories)
        ]
