import asyncio

import pytest

from mmsearch_trl.core.completion import FinishReason, SamplingParams
from mmsearch_trl.core.errors import EngineError
from mmsearch_trl.engine.scripted import ScriptedEngine


def test_turns_come_in_order_and_end_as_a_model_s_would() -> None:
    engine = ScriptedEngine([[1, 2, 9], [3, 4]], stop_ids=[9])
    first = asyncio.run(engine.generate([0], [], SamplingParams(max_tokens=5)))
    second = asyncio.run(engine.generate([0, 1], [], SamplingParams(max_tokens=5)))
    assert (first.token_ids, first.finish_reason) == ((1, 2, 9), FinishReason.STOP)
    assert (second.token_ids, second.finish_reason) == ((3, 4), FinishReason.LENGTH)
    assert [request[0] for request in engine.requests] == [(0,), (0, 1)]


def test_a_turn_is_cut_at_its_budget() -> None:
    completion = asyncio.run(ScriptedEngine([[1, 2, 9]], [9]).generate([0], [], SamplingParams(max_tokens=2)))
    assert (completion.token_ids, completion.finish_reason) == ((1, 2), FinishReason.LENGTH)


def test_a_script_that_is_over_is_an_engine_error() -> None:
    with pytest.raises(EngineError, match="holds 0 turns"):
        asyncio.run(ScriptedEngine([], [9]).generate([0], [], SamplingParams(max_tokens=2)))
