"""A scenario's trajectories, found by rolling it out against its own script, without an engine."""

import asyncio
from collections.abc import Sequence

from benchmarks.rollout.plan import Plan, prompt_digest
from benchmarks.rollout.scenario import GROUP, Scenario
from benchmarks.rollout.tools import tools

from mmsearch_trl.core.completion import Completion, FinishReason, SamplingParams
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.protocol.mmsearch import MMSearchProtocol
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.loop import named_sampling, run_batch


TRL_SEED = 1
"""TRL asks for a group at once with one seed; vLLM gives the member number i the seed plus i."""


def samplings(scenario: Scenario, limits: Limits) -> list[SamplingParams]:
    return [named_sampling(limits, f"{scenario.seed}/{row.index}", 1.0) for row in scenario.rows]


class ScriptEngine:
    """Says what the scenario says, and remembers the seed of each first turn."""

    def __init__(self, scenario: Scenario, protocol: MMSearchProtocol) -> None:
        self._scenario = scenario
        self._chat = protocol.chat
        self._said: dict[str, int] = {}
        self.first_seeds: dict[str, int] = {}

    async def generate(
        self, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: SamplingParams
    ) -> Completion:
        name = sampling.affinity
        turn = self._said.get(name, 0)
        self._said[name] = turn + 1
        self.first_seeds.setdefault(name, sampling.seed)
        text = self._scenario.row(name).turns[turn]
        ids = (*self._chat.tokenizer(text, add_special_tokens=False)["input_ids"], self._chat.turn_end_id)
        return Completion(ids, (0.0,) * len(ids), FinishReason.STOP)


def script(scenario: Scenario, protocol: MMSearchProtocol, limits: Limits, plan: Plan) -> list[Trajectory]:
    """The scenario's trajectories, with tools that answer at once; their turns are added to the plan."""
    engine = ScriptEngine(scenario, protocol)
    work = run_batch(
        scenario.tasks(), engine, protocol, tools(scenario, scale=0.0), limits, samplings(scenario, limits)
    )
    trajectories = asyncio.run(work)
    for row, trajectory in zip(scenario.rows, trajectories, strict=True):
        if len(trajectory.turns) != len(row.turns):
            raise ValueError(f"{row.id} ends after {len(trajectory.turns)} of {len(row.turns)} turns")
        prompt = list(trajectory.prompt_ids)
        for seed in (engine.first_seeds[row.id], TRL_SEED + row.index % GROUP):
            plan.add(f"{prompt_digest(prompt)}/{seed}", trajectory.turns[0].token_ids)
        for turn, following in zip(trajectory.turns, trajectory.turns[1:], strict=False):
            prompt += [*turn.token_ids, *turn.reply_ids]
            plan.add(prompt_digest(prompt), following.token_ids)
    return trajectories
