"""What a trajectory was paid."""

import math
from dataclasses import dataclass

from mmsearch_trl.core.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class RewardParts:
    """A score and what it is made of.

    Attributes:
        reward: What the policy is trained on.
        accuracy: 1.0 when the answer is right, else 0.0; no penalty in it.
        format: 1.0 when the form is valid, else 0.0.
        searches: Turns that asked for a search, executed or not; None where nobody counts any.
        answer: The extracted answer, or None when there is none.
        given_up: Whether judging the answer took too long, so that it counts as wrong; None where that cannot be.
    """

    reward: float
    accuracy: float
    format: float
    searches: int | None
    answer: str | None
    given_up: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTrajectory:
    """A trajectory and what it was paid.

    Attributes:
        parts: NaN in them for what nobody judged.
        advantage: The sequence's advantage; None outside training.
    """

    trajectory: Trajectory
    parts: RewardParts
    advantage: float | None = None

    @property
    def reward(self) -> float | None:
        """The total; None where the trajectory was not scored."""
        return None if math.isnan(self.parts.reward) else self.parts.reward

    @property
    def rewards(self) -> dict[str, float]:
        """The parts by name; empty where nobody judged any."""
        parts = self.parts
        if math.isnan(parts.accuracy) and math.isnan(parts.format):
            return {}
        counted = {} if parts.searches is None else {"searches": float(parts.searches)}
        return {"accuracy": parts.accuracy, "format": parts.format, **counted}

    @property
    def right(self) -> bool | None:
        """Whether the answer was judged right; None when nobody judged."""
        return self.parts.accuracy > 0 if math.isfinite(self.parts.accuracy) else None

    @property
    def group(self) -> str | None:
        """What reports group by: the task's `extra["group"]` where it has one, else its category."""
        task = self.trajectory.task
        return task.extra.get("group") or task.category
