"""A rollout of one turn beside one call of the same engine, for the same prompts under the same sampling parameters.

Both sides start from tasks, with cold caches, and end with sampled tokens. They take turns, and which comes first
alternates: each pair is one ratio, so that a slow minute of the machine hits both. Processor time tells the two apart
where other work runs on the machine.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.lmm_r1_speed.clock import processor_seconds
from benchmarks.lmm_r1_speed.engines import Batch, Kind
from benchmarks.lmm_r1_speed.model import make_chat, make_processor

from mmsearch_trl.engine.vllm_server import ServerEngine
from mmsearch_trl.protocol.direct import DirectProtocol
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.rollouter import Rollouter


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds on the clock, and of processors."""

    wall: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Pair:
    """What both sides took, one right after the other."""

    call: Cost
    ours: Cost


def measure(kind: Kind, batch: Batch, repeats: int, tell: Callable[[str], None]) -> list[Pair]:
    """`repeats` pairs, after one that is not counted."""
    pairs = []
    for repeat in range(repeats + 1):
        sides = {"call": one_call, "ours": rollout}
        costs = {name: sides[name](kind, batch) for name in (list(sides) if repeat % 2 else reversed(sides))}
        pairs.append(Pair(**costs))
        tell(f"{costs['ours'].wall:.2f} s beside {costs['call'].wall:.2f} s")
    return pairs[1:]


def one_call(kind: Kind, batch: Batch) -> Cost:
    chat = make_chat(make_processor())
    kind.reset()
    started, before = time.perf_counter(), processor_seconds()
    tokens = kind.call(batch, chat)
    cost = Cost(time.perf_counter() - started, processor_seconds() - before)
    _check(tokens, batch)
    return cost


def rollout(kind: Kind, batch: Batch) -> Cost:
    limits = Limits(max_turns=1, max_turn_tokens=batch.tokens, max_response_tokens=batch.tokens)
    chat = make_chat(make_processor())
    tasks = [task for task in batch.tasks for _ in range(batch.group)]
    rollouter = Rollouter(DirectProtocol(chat), None, limits)
    kind.reset()
    with kind.opened(chat) as engine:
        started, before = time.perf_counter(), processor_seconds()
        report = rollouter.run(tasks, engine, [str(number) for number in range(len(tasks))], 1.0)
        cost = Cost(time.perf_counter() - started, processor_seconds() - before)
        if isinstance(engine, ServerEngine):
            rollouter.loop.run(engine.close())
    _check([trajectory.completion_ids for trajectory in report.trajectories], batch)
    return cost


def summary(pairs: list[Pair]) -> dict[str, Any]:
    """Seconds of each pair, ratios of wall time in pairs, and that of processor time in all."""
    return {
        "call": [pair.call.wall for pair in pairs],
        "ours": [pair.ours.wall for pair in pairs],
        "ratios": [pair.ours.wall / pair.call.wall for pair in pairs],
        "cpu_ratio": median(pair.ours.cpu for pair in pairs) / median(pair.call.cpu for pair in pairs),
    }


def _check(tokens: list[list[int]], batch: Batch) -> None:
    lengths = {len(ids) for ids in tokens}
    if len(tokens) != len(batch.tasks) * batch.group or lengths != {batch.tokens}:
        raise RuntimeError(f"{len(tokens)} completions of {sorted(lengths)} tokens")
