"""Search-R1's reading of turns and its words to the model, against what its own code was recorded to do.

Two recordings are of defects: a step that fails because a row that has ended still holds a search (here a trajectory
that has ended takes no step), and a search that is asked although there is none to make (nothing is asked here).
"""

import asyncio
from typing import Any

import pytest
import toy

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.completion import Completion, FinishReason, SamplingParams
from mmsearch_trl.core.observation import Observation, TextHit
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import StopReason, Trajectory
from mmsearch_trl.engine.scripted import ScriptedEngine
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.protocol.search_r1 import SearchR1Protocol
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.loop import run_trajectory
from mmsearch_trl.search.runtime import SearchRuntime
from mmsearch_trl.search.text.retriever import _hit


Vector = dict[str, Any]
PROTOCOL = SearchR1Protocol(ChatEncoder(toy.build_processor()))
CHAT = PROTOCOL.chat
KINDS = {"search": ActionKind.TEXT_SEARCH, "answer": ActionKind.ANSWER, None: ActionKind.NONE}
TASK = Task(id="1", question="who?")
RECORDED_RESULTS = [
    {"document": {"id": "0", "contents": '"Moby-Dick"\nMoby-Dick is a novel.\nBy Melville.'}, "score": 0.9},
    {"document": {"id": "1", "contents": "No newline title"}, "score": 0.5},
]
LIMITS = Limits(max_turns=2, max_turn_tokens=500, max_response_tokens=4000)


class Recorded:
    """The results that upstream's search was made to give."""

    name, fingerprint = "recorded", "1"

    def __init__(self) -> None:
        self.queries: list[str] = []

    async def search(self, query: str, k: int) -> list[TextHit]:
        self.queries.append(query)
        return [_hit(row) for row in RECORDED_RESULTS]


def _ids(text: str) -> tuple[int, ...]:
    return tuple(CHAT.tokenizer(text, add_special_tokens=False).input_ids)


def _step(prediction: str) -> tuple[Trajectory, list[str]]:
    """One turn of one trajectory, and what it searched for; the turn after it, if there is one, says nothing."""
    backend = Recorded()
    trajectory = asyncio.run(
        run_trajectory(
            TASK,
            ScriptedEngine([_ids(prediction), ()], [CHAT.turn_end_id]),
            PROTOCOL,
            SearchRuntime(None, backend),
            LIMITS,
            SamplingParams(max_tokens=1),
        )
    )
    return trajectory, backend.queries


def test_vector(search_r1_rollout_vector: Vector) -> None:
    vector = search_r1_rollout_vector
    match vector["kind"]:
        case "action":
            action = PROTOCOL.read(vector["text"])
            assert (action.kind, action.text or "") == (KINDS[vector["action"]], vector["content"])
        case "truncate_at_action":
            ids = _ids(vector["text"])
            cut = PROTOCOL.sampled(Completion(ids, (0.0,) * len(ids), FinishReason.LENGTH))
            assert CHAT.decode(cut.token_ids) == vector["expected"]
        case "passages_to_string":
            hits = tuple(_hit(row) for row in vector["docs"])
            reply = PROTOCOL.reply(Observation(tool=ActionKind.TEXT_SEARCH, hits=hits), TASK, ())
            expected = vector["expected"].strip() or "The search found nothing."
            assert reply.parts == (f"\n\n<information>{expected}</information>\n\n",)
        case "step":
            _check_step(vector)
        case kind:
            pytest.fail(f"no test knows the kind {kind!r}")


def _check_step(vector: Vector) -> None:
    if "error" in vector:
        assert vector["error"] == "AssertionError" and not all(vector["active"])
        return
    searched: list[str] = []
    for i, prediction in enumerate(vector["predictions"]):
        trajectory, queries = _step(prediction)
        first = trajectory.turns[0]
        assert "".join(str(part) for part in first.reply) == vector["next_obs"][i]
        assert (trajectory.stop is StopReason.ANSWERED) == bool(vector["dones"][i])
        assert (first.action.kind is not ActionKind.NONE) == bool(vector["valid_action"][i])
        assert first.action.calls_tool == bool(vector["is_search"][i])
        searched += queries
    assert searched == [query for call in vector["search_calls"] for query in call]
