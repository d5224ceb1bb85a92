"""Shares over several batches, and what counts as a search."""

from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.observation import Failure, FailureKind, Observation
from mmsearch_trl.core.ratio import Ratio
from mmsearch_trl.core.reward import RewardParts
from mmsearch_trl.core.trajectory import StopReason, Trajectory
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.evaluation.measures import Measures
from mmsearch_trl.trainer.metrics import accuracy_by_search


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=9))
def test_joined_shares_are_the_share_of_all(pairs: list[tuple[int, int]]) -> None:
    pairs = [(min(pair), max(pair)) for pair in pairs]
    whole = Ratio.joined(Ratio(*pair) for pair in pairs)
    total, count = sum(total for total, _ in pairs), sum(count for _, count in pairs)
    assert whole == (total / count if count else 0.0) and (whole.total, whole.count) == (total, count)


@pytest.mark.slow
def test_a_share_over_several_batches_is_not_the_mean_of_their_shares(tmp_path: Path) -> None:
    """One right of the one that searched, then none of four: 0.2 and not 0.5."""
    trainer = tiny.trainer(tiny.qwen25(), tmp_path)
    trainer.model.train()
    for right, searched in ((1, 1), (0, 4)):
        trainer.append_metrics({"accuracy/searched": Ratio(right, searched), "rollout/turns": 2.0 * searched})
    logs: dict[str, float] = {}
    trainer.log(logs)
    assert (logs["accuracy/searched"], logs["rollout/turns"]) == (0.2, 5.0)


def done(stop: StopReason, *observations: Observation) -> Trajectory:
    [task] = tiny.tasks(1)
    trajectory = Trajectory(task=task, prompt=(), prompt_ids=(), stop=stop)
    trajectory.turns = [_Turn(observation) for observation in observations]  # pyright: ignore[reportAttributeAccessIssue]
    return trajectory


class _Turn:
    token_ids = (1,)

    def __init__(self, observation: Observation) -> None:
        self.observation = observation


def observed(tool: ActionKind, kind: FailureKind | None = None) -> Observation:
    return Observation(tool=tool, failure=Failure(kind, "") if kind else None)


def test_accuracy_leaves_out_what_ended_through_no_doing_of_the_policy() -> None:
    search = observed(ActionKind.TEXT_SEARCH)
    trajectories = [done(stop, search) for stop in (StopReason.ANSWERED, StopReason.FAILED, StopReason.STRAGGLER)]
    assert dict(accuracy_by_search(trajectories, [1.0, None, None], Ranks())) == {"accuracy/searched": 1.0}


@pytest.mark.parametrize("tool", [ActionKind.IMAGE_SEARCH, ActionKind.TEXT_SEARCH])
@pytest.mark.parametrize(
    ("kind", "counts"), [(None, True), (FailureKind.TIMEOUT, True), (FailureKind.INVALID_QUERY, False)]
)
def test_a_search_that_nobody_could_carry_out_is_none(tool: ActionKind, kind: Any, counts: bool) -> None:
    """An image search without an image, a text search without words."""
    trajectory = done(StopReason.ANSWERED, observed(tool, kind))
    assert trajectory.searched is counts
    measures = Measures.of(trajectory, RewardParts(1.0, 1.0, 1.0, 0, None))
    assert measures.image_searches + measures.text_searches == int(counts)
    [(name, _)] = accuracy_by_search([trajectory], [1.0], Ranks())
    assert name == ("accuracy/searched" if counts else "accuracy/unsearched")
