"""From rows of the training data to a scored generation batch: what a trainer does before its loss.

Nothing here logs or knows a trainer: what was measured comes back with the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mmsearch_trl.core.errors import RunEnded, UserError
from mmsearch_trl.core.task import Task
from mmsearch_trl.data.dataset import row_to_task
from mmsearch_trl.distributed.policy import Policy
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.rollout.outage import Tally
from mmsearch_trl.rollout.rollouter import Rollouter
from mmsearch_trl.trainer.collected import CollectedBatch
from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.trainer.group_filter import GroupFilter
from mmsearch_trl.trainer.metrics import rollout_metrics
from mmsearch_trl.trainer.rewards import RewardFunctions
from mmsearch_trl.trainer.sampler.sampler import Sampler
from mmsearch_trl.trainer.search_calls import SearchCalls
from mmsearch_trl.trainer.surplus import Groups, Surplus


Row = dict[str, Any]
_IMAGE_COLUMNS = ("image", "images")


@dataclass(frozen=True, slots=True)
class Collection:
    """What collecting a batch found.

    Attributes:
        metrics: Of each rollout that it took, for the log.
    """

    batch: CollectedBatch
    metrics: list[dict[str, float]]


class Collector:
    """Rolls out and scores the rows of generation batches; all ranks call it alike.

    Args:
        resize_images: Bring question images to MMSearch-R1's size.

    Attributes:
        surplus: What is carried over from batch to batch.
    """

    def __init__(
        self,
        args: MMSearchGRPOConfig,
        rollouter: Rollouter,
        sampler: Sampler,
        reward_functions: RewardFunctions,
        ranks: Ranks,
        *,
        resize_images: bool,
    ) -> None:
        self._args = args
        self._rollouter = rollouter
        self._sampler = sampler
        self._reward_functions = reward_functions
        self._ranks = ranks
        self.resize_images = resize_images
        self.surplus = Surplus()
        self.outage = args.outage_monitor(few=2 * int(args.num_generations or 1))  # one prompt may be at fault itself
        self._rollouts = (-1, 0)
        """The step of the newest rollout, and how many that step had before it."""

    def collect(self, rows: list[Row], policy: Policy, state: Any, dataset: Sequence[Any]) -> Collection:
        """Roll out the rows and, with group filtering, rows of other prompts for groups that teach nothing.

        Args:
            state: The trainer's, for reward functions.
            dataset: Where other prompts are drawn from. Every rank rolls out as many batches as the one that needs
                most.

        Raises:
            UserError: `max_refills` further batches did not bring enough.
        """
        args = self._args
        if not args.filter_zero_variance_groups:
            batch, metrics = self._roll_out(rows, policy, state)
            return Collection(batch, [metrics])
        size, all_metrics = int(args.num_generations or 1), []
        carried = self.surplus.groups
        groups = GroupFilter(size, len(rows), carried)
        for refill in range(args.max_refills + 1):
            batch, metrics = self._roll_out(rows, policy, state)
            all_metrics.append(metrics)
            groups.add(batch)
            if not self._ranks.any(not groups.full):
                self.surplus.groups = groups.surplus if args.carry_surplus_groups else Groups()
                metrics = {"train/generation_batches": refill + 1.0}
                if args.carry_surplus_groups:
                    metrics["train/carried_groups"] = self._ranks.sum([len(self.surplus.groups) // size])[0]
                # Once more, on what is kept: the functions log means over the rows that they are given.
                rows, trajectories = groups.kept.rows, groups.kept.trajectories
                rewards = self._reward_functions(rows, trajectories, state)
                kept = CollectedBatch(rows, trajectories, rewards, min(len(carried), len(rows)))
                return Collection(kept, [*all_metrics, metrics])
            rows = groups.draw(dataset, f"{args.seed}/{self._rollouts}/{self._ranks.index}")
        raise UserError(
            f"filter_zero_variance_groups: {args.max_refills + 1} batches held {len(groups.kept) // size} prompts "
            f"with differing rewards, {len(rows) // size} are needed. Raise max_refills, or check that the reward "
            "varies."
        )

    def to_task(self, row: Row) -> Task:
        return row_to_task(row, resize=self.resize_images)

    def _roll_out(self, rows: list[Row], policy: Policy, state: Any) -> tuple[CollectedBatch, dict[str, float]]:
        """Roll out rows with the current weights and score them.

        Raises:
            RunEnded: one of the ranks abandoned its rollouts.
            EngineLost, SearchLost: rollouts, or searches, fail and will go on failing.
        """
        args, count = self._args, self._rollouts[1] + 1
        self._rollouts = (policy.step, count if self._rollouts[0] == policy.step else 0)
        prefix, first = f"{args.seed}/{policy.step}/{self._rollouts[1]}", self._ranks.index * len(rows)
        names = [f"{prefix}/{first + i}" for i in range(len(rows))]
        with self._sampler.open(policy) as opened:
            tasks = tasks_of(rows, self.to_task)
            try:
                report = self._rollouter.run(
                    tasks, opened.engine, names, args.temperature, close_share=args.rollout_close_share
                )
            except RunEnded:
                report = None
        if self._ranks.any(report is None):
            raise RunEnded
        assert report is not None
        metrics = opened.statistics.metrics() | rollout_metrics(report, self._ranks, self._rollouter.tool_names)
        if self._rollouter.tools is not None:
            metrics |= SearchCalls.gather(report.calls, self._ranks).metrics()
        tallies = self._ranks.gather_objects([Tally.of(report.trajectories)])
        if (lost := self.outage.lost(sum(tallies, Tally()))) is not None:
            raise lost
        rows = [{key: value for key, value in row.items() if key not in _IMAGE_COLUMNS} for row in rows]
        rewards = self._reward_functions(rows, report.trajectories, state)
        return CollectedBatch(rows, report.trajectories, rewards), metrics


def tasks_of(rows: Sequence[Row], to_task: Callable[[Row], Task]) -> list[Task]:
    """The tasks of rows; those of a group are copies of one row and share its task, whose images are decoded once."""
    tasks: list[Task] = []
    for number, row in enumerate(rows):
        copied = number > 0 and row == rows[number - 1]
        tasks.append(tasks[-1] if copied else to_task(row))
    return tasks
