"""A rollout without tools is one turn; how it ended is told, and no tool is asked for anything."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import small_lm
import tiny

from mmsearch_trl.core.completion import Completion, SamplingParams
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.trajectory import StopReason, Trajectory
from mmsearch_trl.engine.scripted import ScriptedEngine
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.protocol.direct import DirectProtocol
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.loop import run_batch, run_trajectory
from mmsearch_trl.rollout.rollouter import Rollouter


PROTOCOL = DirectProtocol(ChatEncoder(small_lm.build_tokenizer()))
TASK = replace(tiny.tasks(1)[0], images=())
SAMPLING = SamplingParams(max_tokens=9)


def turn(text: str, *, ended: bool = True) -> tuple[int, ...]:
    ids = PROTOCOL.chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    return (*ids, PROTOCOL.chat.turn_end_id) if ended else tuple(ids)


def rolled_out(text: str, limits: Limits | None = None, *, ended: bool = True) -> Trajectory:
    engine = ScriptedEngine([turn(text, ended=ended)], [PROTOCOL.chat.turn_end_id])
    return asyncio.run(run_trajectory(TASK, engine, PROTOCOL, None, limits or Limits(), SAMPLING))


@pytest.mark.parametrize("text", ["four", "<search>four</search>", "<text_search>four</text_search>", ""])
def test_whatever_the_turn_says_it_is_the_answer(text: str) -> None:
    trajectory = rolled_out(text)
    assert (trajectory.stop, len(trajectory.turns)) == (StopReason.ANSWERED, 1)
    assert trajectory.turns[0].action.text == text and trajectory.turns[0].reply_ids == ()
    assert trajectory.searched is None and not list(trajectory.searches)


def test_a_turn_that_was_cut_ended_for_want_of_tokens() -> None:
    assert rolled_out("four", ended=False).stop is StopReason.TOKEN_LIMIT


def test_a_prompt_that_fills_the_window_has_no_turn() -> None:
    trajectory = rolled_out("four", Limits(max_context_tokens=4))
    assert (trajectory.stop, trajectory.turns) == (StopReason.TOKEN_LIMIT, [])


def test_one_that_never_began_knows_of_no_searches_either() -> None:
    class Once(ScriptedEngine):
        async def generate(self, token_ids: Any, images: Any, sampling: SamplingParams) -> Completion:
            if self.requests:
                await asyncio.sleep(60)
            return await super().generate(token_ids, images, sampling)

    engine = Once([turn("four")], [PROTOCOL.chat.turn_end_id])
    batch = run_batch([TASK] * 3, engine, PROTOCOL, None, Limits(), [SAMPLING] * 3, max_in_flight=1, close_share=0.3)
    first, *others = asyncio.run(batch)
    assert first.stop is StopReason.ANSWERED and first.searched is None
    assert [(other.stop, other.searched) for other in others] == [(StopReason.STRAGGLER, None)] * 2


def test_tools_and_protocol_go_together() -> None:
    with pytest.raises(UserError, match="search: DirectProtocol calls no tool: leave it out"):
        Rollouter(PROTOCOL, tiny.CannedTools(), Limits())
    with pytest.raises(UserError, match="search: MMSearchProtocol searches: give it its tools"):
        Rollouter(tiny.qwen25().protocol(), None, Limits())
    assert Rollouter(PROTOCOL, None, Limits()).tool_names is None
