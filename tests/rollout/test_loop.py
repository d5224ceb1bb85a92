"""The rollout coroutine, turn by turn, with scripted models and canned tools."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import tiny

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.completion import FinishReason, SamplingParams
from mmsearch_trl.core.errors import ContextOverflow
from mmsearch_trl.core.observation import Failure, FailureKind, Observation
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import StopReason, Trajectory
from mmsearch_trl.engine.scripted import ScriptedEngine
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.loop import run_batch, run_trajectory


PROTOCOL = tiny.qwen25().protocol()
CHAT = PROTOCOL.chat
[TASK] = tiny.tasks(1)
IMAGE, TEXT, ANSWER = "<search><img></search>", "<text_search>who</text_search>", "<answer>new</answer>"
REASON = "<reason> it is new</reason>"


def turn(text: str, *, ended: bool = True) -> list[int]:
    return [*CHAT.tokenizer(text).input_ids, *([CHAT.turn_end_id] if ended else [])]


def roll_out(
    *turns: str | Sequence[int], tools: Any = None, task: Task = TASK, **limits: Any
) -> tuple[Trajectory, ScriptedEngine, tiny.CannedTools]:
    tools = tools or tiny.CannedTools()
    engine = ScriptedEngine([turn(t) if isinstance(t, str) else t for t in turns], [CHAT.turn_end_id])
    settings: dict[str, Any] = {"max_turn_tokens": 50, "max_response_tokens": 500} | limits
    trajectory = asyncio.run(
        run_trajectory(task, engine, PROTOCOL, tools, Limits(**settings), SamplingParams(max_tokens=1, seed=3))
    )
    return trajectory, engine, tools


def test_searches_are_answered_and_an_answer_ends_it() -> None:
    trajectory, engine, tools = roll_out(REASON + IMAGE, REASON + TEXT, REASON + ANSWER)
    assert trajectory.stop is StopReason.ANSWERED and len(trajectory.turns) == 3
    assert [tool for tool, _ in tools.calls] == [ActionKind.IMAGE_SEARCH, ActionKind.TEXT_SEARCH]
    assert tools.calls[0][1] == TASK.image_url and tools.calls[1][1] == "who"
    for number, (ids, keys, _) in enumerate(engine.requests):
        before = replace(trajectory, turns=trajectory.turns[:number])
        assert list(ids) == before.token_ids and list(keys) == [image.key for image in before.images]
    assert trajectory.responses == [REASON + IMAGE, REASON + TEXT, REASON + ANSWER]


def test_each_turn_has_a_seed_of_its_own_that_the_trajectory_s_seed_decides() -> None:
    seeds = [[sampling.seed for _, _, sampling in roll_out(IMAGE, TEXT, ANSWER)[1].requests] for _ in range(2)]
    assert seeds[0] == seeds[1] and len(set(seeds[0])) == 3


@pytest.mark.parametrize(
    ("text", "stop"), [(ANSWER, StopReason.ANSWERED), ("garbage", StopReason.NO_ACTION), ("", StopReason.NO_ACTION)]
)
def test_a_turn_without_a_search_ends_it(text: str, stop: StopReason) -> None:
    trajectory, _, tools = roll_out(text)
    assert trajectory.stop is stop and not tools.calls and not trajectory.turns[0].reply_ids


def test_a_turn_cut_at_its_budget_is_told_from_one_that_said_nothing() -> None:
    trajectory, engine, _ = roll_out(turn("garbage and more", ended=False), max_turn_tokens=3)
    assert trajectory.stop is StopReason.TOKEN_LIMIT and len(trajectory.turns[0].token_ids) == 3
    assert engine.requests[0][2].max_tokens == 3 and trajectory.turns[0].finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("turns", "limits", "stop", "calls"),
    [
        ((IMAGE, IMAGE), {}, StopReason.SEARCH_LIMIT, 1),
        ((TEXT, TEXT, ANSWER), {}, StopReason.ANSWERED, 2),
        ((TEXT, TEXT), {"text_search_limit": 1}, StopReason.SEARCH_LIMIT, 1),
        ((IMAGE,), {"image_search_limit": 0}, StopReason.SEARCH_LIMIT, 0),
        ((IMAGE, TEXT, TEXT), {}, StopReason.TURN_LIMIT, 2),
        ((IMAGE,), {"max_turns": 1}, StopReason.TURN_LIMIT, 0),
        ((TEXT, IMAGE, ANSWER), {}, StopReason.ANSWERED, 2),
        ((TEXT, IMAGE), {"image_search_first_turn_only": True}, StopReason.SEARCH_LIMIT, 1),
    ],
)
def test_limits_end_it_without_a_reply(turns: Any, limits: dict[str, Any], stop: StopReason, calls: int) -> None:
    trajectory, _, tools = roll_out(*turns, **limits)
    assert trajectory.stop is stop and len(tools.calls) == calls and not trajectory.turns[-1].reply_ids


def test_a_refused_search_may_be_answered_by_a_request_for_the_answer() -> None:
    trajectory, _, tools = roll_out(IMAGE, IMAGE, ANSWER, forced_answer=True, forced_answer_tokens=60)
    assert trajectory.stop is StopReason.ANSWERED and len(trajectory.turns) == 3 and len(tools.calls) == 1
    assert trajectory.turns[1].observation is None and trajectory.turns[1].reply
    again, _, tools = roll_out(IMAGE, IMAGE, IMAGE, forced_answer=True, forced_answer_tokens=60)
    assert again.stop is StopReason.TURN_LIMIT and len(again.turns) == 3 and len(tools.calls) == 1


@pytest.mark.parametrize("total", range(10, 130, 7))
@pytest.mark.parametrize("options", [{}, {"on_overflow": "end"}, {"forced_answer": True, "forced_answer_tokens": 9}])
def test_no_limit_on_tokens_is_ever_passed(total: int, options: dict[str, Any]) -> None:
    trajectory, engine, _ = roll_out(
        REASON + IMAGE, REASON + TEXT, REASON + ANSWER, REASON + ANSWER, max_response_tokens=total, **options
    )
    assert len(trajectory.completion_ids) <= total
    assert trajectory.token_ids.count(CHAT.image_pad_id) == sum(image.num_tokens for image in trajectory.images)
    for (ids, _, sampling), sampled in zip(engine.requests, trajectory.turns, strict=True):
        assert len(sampled.token_ids) <= sampling.max_tokens <= total - (len(ids) - len(trajectory.prompt_ids))
    assert trajectory.stop is not None


@pytest.mark.parametrize("room", [-5, 0, 1, 20, 60, 400])
def test_the_context_window_is_never_passed(room: int) -> None:
    window = len(PROTOCOL.prompt(TASK).token_ids) + room
    trajectory, _, _ = roll_out(REASON + IMAGE, REASON + TEXT, REASON + ANSWER, max_context_tokens=window)
    assert len(trajectory.token_ids) <= max(window, len(trajectory.prompt_ids))
    assert (trajectory.stop is StopReason.TOKEN_LIMIT) == (room < 400)
    assert bool(trajectory.turns) == (room > 0)


def test_a_reply_that_does_not_fit_is_a_notice_or_the_end() -> None:
    fitted, _, _ = roll_out(IMAGE, ANSWER)
    total = len(fitted.turns[0].token_ids) + len(fitted.turns[0].reply_ids) - 1
    noticed, _, _ = roll_out(IMAGE, ANSWER, max_response_tokens=total)
    assert "too long" in CHAT.decode(noticed.turns[0].reply_ids) and not noticed.turns[0].reply_images
    assert noticed.turns[0].observation is not None and noticed.stop in (StopReason.ANSWERED, StopReason.TOKEN_LIMIT)
    ended, _, _ = roll_out(IMAGE, ANSWER, max_response_tokens=total, on_overflow="end")
    assert ended.stop is StopReason.TOKEN_LIMIT and not ended.turns[0].reply_ids
    assert ended.turns[0].observation is not None, "a search that was made is counted"


def test_an_image_search_without_an_image_is_the_policy_s_failure() -> None:
    trajectory, _, tools = roll_out(IMAGE, ANSWER, task=replace(TASK, images=()))
    [observation] = trajectory.observations
    assert observation.failure is not None and observation.failure.kind is FailureKind.INVALID_QUERY
    assert not tools.calls and trajectory.stop is StopReason.ANSWERED


def test_a_prompt_over_the_engine_s_window_ends_the_trajectory_without_a_failure() -> None:
    class Narrow(ScriptedEngine):
        async def generate(self, token_ids: Sequence[int], images: Any, sampling: SamplingParams) -> Any:
            if len(token_ids) > 25:
                raise ContextOverflow(f"{len(token_ids)} tokens")
            return await super().generate(token_ids, images, sampling)

    engine = Narrow([turn(REASON + IMAGE), turn(ANSWER)], [CHAT.turn_end_id])
    limits = Limits(max_turn_tokens=50, max_response_tokens=500)
    tools = tiny.CannedTools()
    trajectory = asyncio.run(run_trajectory(TASK, engine, PROTOCOL, tools, limits, SamplingParams(max_tokens=1)))
    assert trajectory.stop is StopReason.TOKEN_LIMIT and trajectory.failure is None
    assert len(trajectory.turns) == 1 and trajectory.turns[0].reply_ids


def test_an_engine_that_fails_leaves_what_was_there() -> None:
    trajectory, _, _ = roll_out(IMAGE)
    assert trajectory.stop is StopReason.FAILED and trajectory.failure is not None
    assert len(trajectory.turns) == 1 and trajectory.turns[0].reply_ids
    assert trajectory.failure.infrastructure and "script holds 1 turns" in trajectory.failure.message


def test_nothing_waits_for_the_slowest() -> None:
    """Four rollouts of two searches each, every search 0.1 s: all together they take little more than two searches."""
    tools = tiny.CannedTools(delay=lambda: 0.1)

    class Many:
        async def generate(self, token_ids: Sequence[int], images: Sequence[Any], sampling: SamplingParams) -> Any:
            turns = (len(token_ids) > 30) + (len(token_ids) > 80)
            script = ScriptedEngine([turn((IMAGE, TEXT, ANSWER)[min(turns, 2)])], [CHAT.turn_end_id])
            return await script.generate(token_ids, images, sampling)

    given = tiny.tasks(4)
    samplings = [SamplingParams(max_tokens=1)] * 4
    trajectories = asyncio.run(run_batch(given, Many(), PROTOCOL, tools, Limits(max_response_tokens=900), samplings))
    assert max(trajectory.seconds for trajectory in trajectories) < 0.1 * 3.5
    assert len(tools.calls) >= 4


class FailingTools(tiny.CannedTools):
    """Text searches fail in the given ways, None for an answer; images are found."""

    def __init__(self, *kinds: FailureKind | None) -> None:
        super().__init__()
        self._kinds = list(kinds)

    async def text_search(self, query: str) -> Observation:
        observation = await super().text_search(query)
        kind = self._kinds.pop(0)
        return observation if kind is None else Observation(tool=ActionKind.TEXT_SEARCH, failure=Failure(kind, "no"))


TIMEOUT, INVALID = FailureKind.TIMEOUT, FailureKind.INVALID_QUERY


@pytest.mark.parametrize(
    ("turns", "kinds", "most", "turns_taken"),
    [
        ((TEXT, TEXT, TEXT, ANSWER), (TIMEOUT, FailureKind.UNAVAILABLE), 2, 2),
        ((TEXT, TEXT, TEXT, ANSWER), (TIMEOUT, None, TIMEOUT), 2, 4),
        ((TEXT, IMAGE, TEXT, ANSWER), (TIMEOUT, TIMEOUT), 2, 4),
        ((TEXT, TEXT, TEXT, ANSWER), (TIMEOUT, INVALID, TIMEOUT), 2, 4),
        ((TEXT, TEXT, TEXT, ANSWER), (TIMEOUT, TIMEOUT, TIMEOUT), None, 4),
        ((TEXT, TEXT, TEXT, ANSWER), (TIMEOUT, TIMEOUT, TIMEOUT), 3, 3),
        ((TEXT, ANSWER), (TIMEOUT,), 1, 1),
    ],
)
def test_searches_that_fail_one_after_the_other_end_the_trajectory(
    turns: tuple[str, ...], kinds: tuple[FailureKind | None, ...], most: int | None, turns_taken: int
) -> None:
    given_up = turns_taken < len(turns)
    trajectory, engine, _ = roll_out(
        *turns, tools=FailingTools(*kinds), max_turns=5, text_search_limit=3, max_search_failures_in_a_row=most
    )
    assert len(trajectory.turns) == len(engine.requests) == turns_taken
    assert trajectory.stop is (StopReason.FAILED if given_up else StopReason.ANSWERED)
    if given_up:
        assert trajectory.failure is not None and trajectory.failure.infrastructure
        assert len(list(trajectory.observations)) == turns_taken and not trajectory.turns[-1].reply_ids
