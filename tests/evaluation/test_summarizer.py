import json
import math
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import FinishReason
from mmsearch_trl.core.observation import Failure, FailureKind, Observation
from mmsearch_trl.core.reward import RewardParts
from mmsearch_trl.core.statistics import wilson_interval
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import StopReason, Trajectory, Turn
from mmsearch_trl.evaluation.measures import Measures
from mmsearch_trl.evaluation.summarizer import Summarizer
from mmsearch_trl.evaluation.summary import EvaluationSummary, GroupSummary


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


def summarize(
    trajectories: Sequence[Trajectory],
    parts: Sequence[RewardParts],
    *,
    max_searches: int = 2,
    tools: Sequence[str] = (),
) -> EvaluationSummary:
    summarizer = Summarizer(max_searches, tools)
    for trajectory, part in zip(trajectories, parts, strict=True):
        summarizer.add(Measures.of(trajectory, part))
    return summarizer.summary()


IMAGE = _turn(2, ActionKind.IMAGE_SEARCH)
TEXT = _turn(4, ActionKind.TEXT_SEARCH)
TEXT_DOWN = _turn(4, ActionKind.TEXT_SEARCH, DOWN)
LAST = _turn(6)


def test_calls_of_a_tool_are_counted_apart_from_searches() -> None:
    crop, refused = _turn(2, "crop"), _turn(2, "crop", Failure(FailureKind.INVALID_QUERY, "empty"))
    trajectories = [_trajectory(crop, refused, LAST), _trajectory(IMAGE, LAST, category="c"), _trajectory(LAST)]
    summary = summarize(trajectories, [RIGHT] * 3, tools=["crop"])
    flat = summary.as_dict()
    assert (flat["tool/crop/ratio"], flat["tool/crop/failure_rate"]) == (1 / 3, 0.5)
    assert (flat["category/c/tool/crop/ratio"], flat["category/c/tool/crop/failure_rate"]) == (0.0, 0.0)
    assert flat["search_ratio"] == 1 / 3
    assert (
        GroupSummary.from_metrics({f"eval_{name}": value for name, value in flat.items()}, "eval_") == summary.overall
    )
    assert not any("tool" in name for name in summarize(trajectories, [RIGHT] * 3).as_dict())


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
    by_search = summary.by_search or {}
    assert {name: group.n for name, group in by_search.items()} == {"searched": 1, "unsearched": 2}


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


def test_nothing_to_summarise_is_an_error() -> None:
    with pytest.raises(ValueError, match="no trajectory"):
        summarize([], [])
    with pytest.raises(ValueError, match="max_searches"):
        summarize([_trajectory(LAST)], [RIGHT], max_searches=0)


def definition(members: Sequence[tuple[Trajectory, RewardParts]], max_searches: int) -> dict[str, float]:
    """The summary of a group that is held in memory as a whole, as the fields' docstrings define it."""

    def mean(values: Iterable[float]) -> float:
        numbers = list(values)
        return math.fsum(numbers) / len(numbers)

    def searches(trajectory: Trajectory, tool: str) -> list[Observation]:
        return [observation for observation in trajectory.observations if observation.tool == tool]

    def failures(observations: Sequence[Observation]) -> float:
        return mean(observation.failure is not None for observation in observations) if observations else 0.0

    n = len(members)
    image = [searches(trajectory, ActionKind.IMAGE_SEARCH) for trajectory, _ in members]
    text = [searches(trajectory, ActionKind.TEXT_SEARCH) for trajectory, _ in members]
    images, texts = [o for each in image for o in each], [o for each in text for o in each]
    accuracy = mean(part.accuracy for _, part in members)
    low, high = wilson_interval(accuracy, n)
    return {
        "n": n,
        "accuracy": accuracy,
        "accuracy_stderr": math.sqrt(mean((part.accuracy - accuracy) ** 2 for _, part in members) / n),
        "accuracy_low": low,
        "accuracy_high": high,
        "reward": mean(0.0 if math.isnan(part.reward) else part.reward for _, part in members),
        "format": mean(part.format for _, part in members),
        "search_ratio": mean(bool(i or t) for i, t in zip(image, text, strict=True)),
        "image_ratio": mean(bool(i) for i in image),
        "text_ratio": mean(bool(t) for t in text),
        "mixed_ratio": mean(bool(i and t) for i, t in zip(image, text, strict=True)),
        "search_rate": (len(images) + len(texts)) / (max_searches * n),
        "image_failure_ratio": failures(images),
        "text_failure_ratio": failures(texts),
        "rollout_failure_ratio": mean(trajectory.stop is StopReason.FAILED for trajectory, _ in members),
        "turns": mean(len(trajectory.turns) for trajectory, _ in members),
        "response_length": mean(sum(len(turn.token_ids) for turn in trajectory.turns) for trajectory, _ in members),
    }


share = st.floats(0, 1)
members = st.lists(
    st.tuples(
        st.builds(
            lambda turns, source, category, failed: _trajectory(
                *turns, source=source, category=category, failed=failed
            ),
            st.lists(st.sampled_from([IMAGE, TEXT, TEXT_DOWN, LAST]), max_size=4),
            st.sampled_from(["", "a", "b"]),
            st.sampled_from([None, "x", "y"]),
            st.booleans(),
        ),
        st.builds(
            RewardParts,
            st.floats(-10, 10) | st.just(math.nan),
            share | st.sampled_from([0.0, 1.0]),
            share,
            st.just(0),
            st.none(),
        ),
    ),
    min_size=1,
    max_size=30,
)


@given(members, st.integers(1, 3))
def test_sums_give_to_the_bit_what_all_trajectories_together_give(
    members: list[tuple[Trajectory, RewardParts]], max_searches: int
) -> None:
    summary = summarize([t for t, _ in members], [p for _, p in members], max_searches=max_searches)
    assert summary.overall.as_dict() == definition(members, max_searches)
    for groups, key in (
        (summary.by_source, lambda t: t.task.data_source or None),
        (summary.by_category, lambda t: t.task.category),
        (summary.by_search or {}, lambda t: "searched" if any(t.observations) else "unsearched"),
    ):
        names = sorted({name for t, _ in members if (name := key(t)) is not None})
        assert list(groups) == names
        for name in names:
            own = [(t, p) for t, p in members if key(t) == name]
            assert groups[name].as_dict() == definition(own, max_searches)


def test_a_row_that_nobody_judged_makes_its_group_s_accuracy_unknown() -> None:
    nobody = RewardParts(math.nan, math.nan, math.nan, 0, None)
    group = summarize([_trajectory(LAST)] * 2, [RIGHT, nobody]).overall
    assert group.accuracy is None and group.accuracy_stderr is None and group.format is None
    assert not {"accuracy", "accuracy_low", "format"} & group.as_dict().keys()
    assert GroupSummary.from_metrics(group.as_dict(), "") == group
    assert group.reward == 0.5
