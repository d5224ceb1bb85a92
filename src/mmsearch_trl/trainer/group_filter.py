"""Group filtering: train only on prompts whose rollouts earned different rewards, and roll out others instead.

A group whose rewards are all equal has no advantage and teaches nothing. As in MMSearch-R1 (`filter_groups`), whole
batches are rolled out until enough informative prompts have come together. The surplus is cut, or waits for the next
batch, which then begins with it.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.trainer.advantages import informative_groups
from mmsearch_trl.trainer.collected import CollectedBatch
from mmsearch_trl.trainer.surplus import Groups


class GroupFilter:
    """Keeps the informative groups of one rank's batches until there are as many as a batch takes.

    Args:
        size: Trajectories of a prompt.
        wanted: Rows of a rank's batch.
        carried: Groups that were kept before.

    Raises:
        UserError: A rank's share of a batch is no whole number of groups.
    """

    def __init__(self, size: int, wanted: int, carried: Groups | None = None) -> None:
        if wanted % size:
            raise UserError(
                f"filter_zero_variance_groups needs whole groups on every rank: per_device_train_batch_size * "
                f"steps_per_generation is {wanted}, which num_generations ({size}) does not divide."
            )
        self._size = size
        self._wanted = wanted
        self._groups = carried or Groups()

    def add(self, batch: CollectedBatch) -> None:
        """Keep the groups of a batch that teach something."""
        # A trajectory without a reward, which no function could score or which was aborted, says nothing.
        aborted = torch.tensor([trajectory.aborted for trajectory in batch.trajectories])
        rewards = batch.rewards.totals.masked_fill(aborted, torch.nan)
        every = Groups(batch.rows, batch.trajectories)
        for i in informative_groups(rewards, self._size).nonzero().flatten().tolist():
            self._groups += every[i * self._size : (i + 1) * self._size]

    @property
    def full(self) -> bool:
        return len(self._groups) >= self._wanted

    @property
    def kept(self) -> Groups:
        """Those of a batch, the first that came."""
        return self._groups[: self._wanted]

    @property
    def surplus(self) -> Groups:
        """What is too many; of more than another batch takes, the newest, for the weights have moved on since."""
        return self._groups[self._wanted :][-self._wanted :]

    def draw(self, dataset: Sequence[Any], name: str) -> list[dict[str, Any]]:
        """Rows of other prompts for the next batch, each as often as a group takes it.

        Args:
            name: Seeds the draw: a resumed run that draws under the same name draws the same.
        """
        chosen = random.Random(name).choices(range(len(dataset)), k=self._wanted // self._size)
        return [dict(dataset[i]) for i in chosen for _ in range(self._size)]
