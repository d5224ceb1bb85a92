"""What a generation batch holds between the rollout and the loss."""

from dataclasses import dataclass
from typing import Any

from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.trainer.rewards import Rewards


@dataclass(frozen=True, slots=True)
class CollectedBatch:
    """The trajectories of one rank, row by row.

    Attributes:
        rows: Of the data, their images left out: these are in the trajectories.
    """

    rows: list[dict[str, Any]]
    trajectories: list[Trajectory]
    rewards: Rewards
