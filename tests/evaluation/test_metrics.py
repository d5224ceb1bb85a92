import json
import math

import pytest

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import FinishReason
from mmsearch_trl.core.observation import Failure, FailureKind, Observation
from mmsearch_trl.core.reward import RewardParts
from mmsearch_trl.core.statistics import wilson_interval
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import StopReason, Trajectory, Turn
from mmsearch_trl.evaluation.metrics import summarize


DOWN = Failure(FailureKind.TIMEOUT, "slow")
RIGHT = RewardParts(1.0, 1.0, 1.0, 0, "x")
WRONG = RewardParts(0.1, 0.0, 1.0, 0, "y")
BROKEN = RewardParts(0.0, 0.0, 0.0, 0, None)


def _turn(tokens: int, tool: str | None = None, failure: Failure | None = None) -> Turn:
    return Turn(
        token_ids=(7,) * tokens,
        logprobs=(0.0,) * tokens,
        finish_reason=FinishReason.STOP,
        text="",
        action=Action(ActionKind.NONE),
        observation=None if tool is None else Observation(tool=tool, failure=failure),
        reply_ids=() if tool is None else (1, 2, 3),
    )


def _trajectory(*turns: Turn, source: str = "fvqa", category: str | None = None, failed: bool = False) -> Trajectory:
    task = Task(id="t", question="?", data_source=source, category=category)
    stop = StopReason.FAILED if failed else StopReason.ANSWERED
    return Trajectory(task=task, prompt=(), prompt_ids=(0, 0), turns=list(turns), stop=stop)


IMAGE = _turn(2, ActionKind.IMAGE_SEARCH)
TEXT = _turn(4, ActionKind.TEXT_SEARCH)
TEXT_DOWN = _turn(4, ActionKind.TEXT_SEARCH, DOWN)
LAST = _turn(6)


def test_ratios_of_one_group() -> None:
    trajectories = [
        _trajectory(LAST),
        _trajectory(IMAGE, LAST),
        _trajectory(IMAGE, TEXT, LAST),
        _trajectory(TEXT_DOWN, LAST),
    ]
    group = summarize(trajectories, [RIGHT, RIGHT, WRONG, BROKEN]).overall
    assert group.n == 4
    assert (group.accuracy, group.format, group.reward) == pytest.approx((0.5, 0.75, 0.525))
    assert (group.search_ratio, group.image_ratio, group.text_ratio, group.mixed_ratio) == (0.75, 0.5, 0.5, 0.25)
    assert group.search_rate == 4 / 8
    assert (group.image_failure_ratio, group.text_failure_ratio) == (0.0, 0.5)
    assert group.turns == 2.0


def test_response_length_counts_sampled_tokens_only() -> None:
    assert summarize([_trajectory(IMAGE, LAST), _trajectory(LAST)], [RIGHT, RIGHT]).overall.response_length == 7.0


def test_search_rate_is_one_for_a_system_that_always_searches() -> None:
    always = _trajectory(IMAGE, TEXT, LAST)
    assert summarize([always] * 3, [RIGHT] * 3).overall.search_rate == 1.0
    assert summarize([always], [RIGHT], max_searches=4).overall.search_rate == 0.5


def test_a_failed_rollout_is_counted_apart() -> None:
    group = summarize([_trajectory(failed=True), _trajectory(LAST)], [BROKEN, RIGHT]).overall
    assert (group.rollout_failure_ratio, group.turns, group.accuracy) == (0.5, 0.5, 0.5)


def test_ratios_of_a_group_use_its_own_rows_only() -> None:
    trajectories = [
        _trajectory(IMAGE, LAST, source="a", category="search_required"),
        _trajectory(LAST, source="b", category="search_free"),
        _trajectory(LAST, source="b"),
    ]
    summary = summarize(trajectories, [RIGHT, WRONG, RIGHT])
    assert {name: (group.n, group.search_ratio) for name, group in summary.by_source.items()} == {
        "a": (1, 1.0),
        "b": (2, 0.0),
    }
    assert {name: group.accuracy for name, group in summary.by_category.items()} == {
        "search_required": 1.0,
        "search_free": 0.0,
    }
    assert {name: group.n for name, group in summary.by_search.items()} == {"searched": 1, "unsearched": 2}


def test_rows_without_source_or_category_are_in_the_whole_only() -> None:
    summary = summarize([_trajectory(LAST, source="")], [RIGHT])
    assert (summary.by_source, summary.by_category, summary.overall.n) == ({}, {}, 1)


def test_the_flat_view_holds_what_reports_read_and_is_json() -> None:
    flat = summarize([_trajectory(IMAGE, LAST, category="search_free")], [RIGHT]).as_dict()
    wanted = {"accuracy", "search_ratio", "image_ratio", "text_ratio", "format", "reward", "n"}
    for prefix in ("", "source/fvqa/", "category/search_free/", "searched/"):
        assert {prefix + key for key in wanted} <= flat.keys()
    assert not any(key.startswith("unsearched/") for key in flat)
    assert json.loads(json.dumps(flat, allow_nan=False)) == flat


def test_standard_error_is_that_of_a_share() -> None:
    group = summarize([_trajectory(LAST)] * 4, [RIGHT, RIGHT, RIGHT, WRONG]).overall
    assert group.accuracy_stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_wilson_interval_matches_the_textbook_and_stays_open_at_the_ends() -> None:
    assert wilson_interval(0.5, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    low, high = wilson_interval(1.0, 10)
    assert (low, high) == pytest.approx((0.72247, 1.0), abs=1e-5)
    assert wilson_interval(0.0, 1)[0] == 0.0


def test_nothing_to_summarise_and_unequal_lengths_are_errors() -> None:
    with pytest.raises(ValueError, match="no trajectory"):
        summarize([], [])
    with pytest.raises(ValueError, match="1 trajectories but 2 scores"):
        summarize([_trajectory(LAST)], [RIGHT, RIGHT])
    with pytest.raises(ValueError, match="max_searches"):
        summarize([_trajectory(LAST)], [RIGHT], max_searches=0)
