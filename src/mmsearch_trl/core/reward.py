"""What a trajectory was paid."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from mmsearch_trl.core.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class RewardParts:
    """A score and what it is made of.

    Attributes:
        reward: What the policy is trained on.
        accuracy: 1.0 when the answer is right, else 0.0; no penalty in it.
        format: 1.0 when the form is valid, else 0.0.
        searches: Turns that asked for a search, executed or not.
        answer: The extracted answer, or None when there is none.
    """

    reward: float
    accuracy: float
    format: float
    searches: int
    answer: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTrajectory:
    """A trajectory and what it was paid.

    Attributes:
        reward: The total.
        rewards: Its parts by name; `accuracy` above 0 means that the answer is right.
        advantage: The sequence's advantage; None outside training.
    """

    trajectory: Trajectory
    reward: float | None = None
    rewards: Mapping[str, float] = field(default_factory=dict)
    advantage: float | None = None

    @property
    def right(self) -> bool | None:
        """Whether the answer was judged right; None when nobody judged."""
        accuracy = self.rewards.get("accuracy", math.nan)
        return accuracy > 0 if math.isfinite(accuracy) else None

    @property
    def group(self) -> str | None:
        """What reports group by: the task's `extra["group"]` where it has one, else its category."""
        task = self.trajectory.task
        return task.extra.get("group") or task.category
