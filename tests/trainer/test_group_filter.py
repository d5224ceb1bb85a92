"""Which groups of a rank's batches are kept."""

from typing import Any

import pytest
import tiny
import torch

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.trajectory import StopReason, Trajectory
from mmsearch_trl.trainer.collected import CollectedBatch
from mmsearch_trl.trainer.group_filter import GroupFilter
from mmsearch_trl.trainer.rewards import Rewards


def batch(*totals: float, failed: tuple[int, ...] = (), name: str = "") -> CollectedBatch:
    [task] = tiny.tasks(1)
    stops = [StopReason.FAILED if i in failed else StopReason.ANSWERED for i in range(len(totals))]
    trajectories = [Trajectory(task=task, prompt=(), prompt_ids=(), stop=stop) for stop in stops]
    rows: list[dict[str, Any]] = [{"id": f"{name}{i}"} for i in range(len(totals))]
    values = torch.tensor(totals, dtype=torch.float32)[:, None]
    return CollectedBatch(rows, trajectories, Rewards(values, torch.ones(1), {}, {}))


def test_groups_whose_rewards_differ_are_kept_until_a_batch_is_full() -> None:
    groups = GroupFilter(2, wanted=4)
    groups.add(batch(1, 1, 0, 1, name="a"))
    assert not groups.full
    groups.add(batch(1, 0, 0, 1, name="b"))
    rows, trajectories = groups.kept.rows, groups.kept.trajectories
    assert groups.full and [row["id"] for row in rows] == ["a2", "a3", "b0", "b1"] and len(trajectories) == 4
    assert [row["id"] for row in groups.surplus.rows] == ["b2", "b3"]


def test_a_batch_begins_with_the_surplus_of_the_one_before() -> None:
    first = GroupFilter(2, wanted=2)
    first.add(batch(0, 1, 1, 0, name="a"))
    second = GroupFilter(2, 2, first.surplus)
    assert second.full
    second.add(batch(1, 0, name="b"))
    assert [row["id"] for row in second.kept.rows] == ["a2", "a3"]
    assert [row["id"] for row in second.surplus.rows] == ["b0", "b1"] and len(first.kept) == 2


def test_no_more_is_carried_over_than_a_batch_takes_and_that_is_the_newest() -> None:
    groups = GroupFilter(2, wanted=4)
    groups.add(batch(*[0, 1] * 5, name="a"))
    assert [row["id"] for row in groups.surplus.rows] == ["a6", "a7", "a8", "a9"]


def test_an_aborted_rollout_does_not_make_its_group_differ() -> None:
    groups = GroupFilter(2, wanted=2)
    groups.add(batch(1, 0, failed=(1,)))
    assert not groups.full


def test_a_rollout_that_no_function_could_score_does_not_make_its_group_differ() -> None:
    groups = GroupFilter(3, wanted=3)
    nothing = float("nan")
    for rewards in ((1, nothing, 1), (nothing, nothing, nothing), (nothing, 0.5, nothing)):
        groups.add(batch(*rewards))
    assert not len(groups.kept)
    groups.add(batch(1, nothing, 0))
    assert groups.full


def test_the_same_name_draws_the_same_rows_and_each_fills_a_group() -> None:
    dataset = [{"id": i} for i in range(50)]
    drawn = GroupFilter(4, wanted=8).draw(dataset, "7/(3, 1)/0")
    assert drawn == GroupFilter(4, wanted=8).draw(dataset, "7/(3, 1)/0") and len(drawn) == 8
    assert drawn[0] == drawn[3] and drawn[4] == drawn[7]
    assert drawn != GroupFilter(4, wanted=8).draw(dataset, "7/(3, 2)/0")


def test_a_share_that_is_no_whole_number_of_groups_is_refused() -> None:
    with pytest.raises(UserError, match=r"is 3, which num_generations \(2\) does not divide"):
        GroupFilter(2, wanted=3)
