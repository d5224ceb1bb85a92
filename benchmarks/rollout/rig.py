"""One server, and any scheduler run on it from a cold start: caches empty, a new client, nothing encoded yet."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time
from typing import TypeVar

from benchmarks.rollout.calibrate import BATCHES, Calibration, calibrate, typical
from benchmarks.rollout.model import WINDOW, make_processor, make_protocol
from benchmarks.rollout.replay import packed_seconds, work_of
from benchmarks.rollout.scenario import ENGINE_SECONDS_PER_ROLLOUT, GROUP, WORDS, Scenario
from benchmarks.rollout.schedulers import Run, Tokens, run_lockstep, run_ours
from benchmarks.rollout.server import BLOCK, Server
from benchmarks.rollout.tools import tools
from benchmarks.rollout.trl_loop import TRLLoop

from mmsearch_trl.engine.base import Engine
from mmsearch_trl.engine.vllm_requests import Vocabulary
from mmsearch_trl.engine.vllm_server import ServerEngine
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.search.cache.store import ResultStore


ResultT = TypeVar("ResultT")

LIMITS = Limits(max_turn_tokens=512, max_response_tokens=WINDOW, max_context_tokens=WINDOW)
_CALIBRATIONS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What is changed about the tools of a run; the defaults are the headline's.

    Attributes:
        scale: Factor on all tool times, beside the rig's own.
        coalescing: Rollouts of a group share the search of their image.
        cache: Answers are kept, in a store that is empty at first.
        slots: Tool calls in flight at a time; None for all.
    """

    scale: float = 1.0
    coalescing: bool = False
    cache: bool = False
    slots: int | None = None


HEADLINE = Variant()
NO_LATENCY = replace(HEADLINE, scale=0.0)
DOUBLE_LATENCY = replace(HEADLINE, scale=2.0)


class Rig:
    """Runs schedulers on a server; every run comes with the processor time that it took.

    Args:
        tokens: Rollouts from which the engine's time per rollout is found.

    Attributes:
        time_scale: Factor on the scenarios' tool times: this engine's time per rollout, its tokens packed as well as
            can be, over that of the model whose tool times they are. So the ratio of tools to generation is that
            model's, on a slow machine as on a fast one.
    """

    def __init__(self, server: Server, folder: Path, tokens: Sequence[Tokens]) -> None:
        self._server = server
        self._url = server.url
        self._folder = folder
        self._trl: dict[int, TRLLoop] = {}
        self.calibrate()  # the first one pays for what a server does once
        cost = typical([self.calibrate() for _ in range(_CALIBRATIONS)]).cost()
        work = work_of(tokens, [()] * len(tokens), BLOCK, GROUP)
        packed = packed_seconds(work, cost, most=BATCHES[-1])
        self.time_scale = packed / len(tokens) / ENGINE_SECONDS_PER_ROLLOUT

    def ours(self, scenario: Scenario, variant: Variant = HEADLINE) -> Run:
        return self._run(run_ours, scenario, variant)

    def lockstep(self, scenario: Scenario, variant: Variant = HEADLINE) -> Run:
        return self._run(run_lockstep, scenario, variant)

    def trl(self, scenario: Scenario) -> Run:
        if scenario.k not in self._trl:
            self._trl[scenario.k] = TRLLoop(self._url, scenario.k, self._folder / "trl")
        asyncio.run(self._with_engine(make_protocol(make_processor()).chat, _nothing))
        return self._with_cpu(lambda: self._trl[scenario.k].run(scenario, self.time_scale))

    def calibrate(self) -> Calibration:
        chat = make_protocol(make_processor()).chat
        words = [chat.tokenizer(f" {word}")["input_ids"][0] for word in WORDS]
        return asyncio.run(self._with_engine(chat, lambda engine: calibrate(engine, words)))

    def _run(self, scheduler: Callable[..., Awaitable[Run]], scenario: Scenario, variant: Variant) -> Run:
        protocol = make_protocol(make_processor())
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            runtime = tools(
                scenario,
                scale=variant.scale * self.time_scale,
                coalescing=variant.coalescing,
                cache=ResultStore(Path(folder) / "answers.sqlite") if variant.cache else None,
                slots=variant.slots,
            )
            try:
                work = self._with_engine(
                    protocol.chat, lambda engine: scheduler(scenario, engine, protocol, runtime, LIMITS)
                )
                return self._with_cpu(lambda: asyncio.run(work))
            finally:
                runtime.close()

    def _with_cpu(self, work: Callable[[], Run]) -> Run:
        before = {"client": process_time()} | self._server.cpu_seconds()
        run = work()
        after = {"client": process_time()} | self._server.cpu_seconds()
        return replace(run, cpu_seconds={name: after[name] - before[name] for name in before})

    async def _with_engine(self, chat: ChatEncoder, work: Callable[[Engine], Awaitable[ResultT]]) -> ResultT:
        width = chat.vocabulary_size
        vocabulary = Vocabulary.of([chat.turn_end_id], chat.vision_ids, chat.image_pad_id, named=width, width=width)
        engine = ServerEngine([self._url], vocabulary)
        try:
            await engine.servers[0].client.reset_caches()
            return await work(engine)
        finally:
            await engine.close()


async def _nothing(engine: Engine) -> None:
    """Only the caches are to be reset."""
