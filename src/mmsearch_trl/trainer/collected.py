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
        carried: How many of the first were rolled out for an earlier batch, by the policy of then.
    """

    rows: list[dict[str, Any]]
    trajectories: list[Trajectory]
    rewards: Rewards
    carried: int = 0
