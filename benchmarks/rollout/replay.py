"""The attainable ideal: the same tokens and tool times, scheduled greedily on an engine of calibrated speed.

An iteration with `b` sequences takes `decode(b)` seconds, `prefill` more per new prompt token, and gives each sequence
one token. A turn starts with the first iteration after its tool has answered. Nothing else costs time: no request, no
process switch, no scheduler.

`T*` is how long that takes; it can be reached, unlike the lower bound `LB`, which ignores that work does not pack.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from benchmarks.rollout.schedulers import Tokens


@dataclass(frozen=True, slots=True)
class Turn:
    """Work of one turn: prompt tokens that no cache holds, tokens decoded, and its tool's time (0 on the last)."""

    new_tokens: int
    decoded: int
    tool_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineCost:
    """Calibrated seconds: `decode` of an iteration by number of sequences, `prefill` per new prompt token."""

    batch: tuple[int, ...]
    seconds: tuple[float, ...]
    prefill: float

    def decode(self, b: int) -> float:
        """Between measured sizes the measurements are interpolated; beyond them the last slope goes on."""
        if b <= self.batch[-1] or len(self.batch) == 1:
            return float(np.interp(b, self.batch, self.seconds))
        slope = (self.seconds[-1] - self.seconds[-2]) / (self.batch[-1] - self.batch[-2])
        return self.seconds[-1] + slope * (b - self.batch[-1])


@dataclass(frozen=True, slots=True)
class LowerBound:
    """What no scheduler can beat, in seconds: `max` of its terms.

    Attributes:
        engine: All tokens, decoded in batches of the most efficient size.
        critical_path: The slowest rollout alone on the engine.
        tool_slots: All tool time over the calls allowed in flight; 0 where they are not limited.
    """

    engine: float
    critical_path: float
    tool_slots: float

    @property
    def seconds(self) -> float:
        return max(self.engine, self.critical_path, self.tool_slots)


def turns_of(tokens: Tokens, tool_seconds: Sequence[float], block: int, shared: int = 0) -> list[Turn]:
    """A rollout as work.

    Args:
        block: Tokens per block of the prefix cache: whole blocks of what was computed before are not computed again.
        shared: Tokens at the beginning of the prompt that another rollout has computed.
    """
    turns, length, known = [], len(tokens.prompt_ids), shared
    for sampled, count in _runs(tokens.mask):
        if sampled:
            cached = min(known // block * block, (length - 1) // block * block)
            turns.append(Turn(length - cached, count))
            known = length + count - 1  # the last sampled token was never an input
        length += count
    waits = [*tool_seconds, *[0.0] * (len(turns) - len(tool_seconds))]
    return [Turn(turn.new_tokens, turn.decoded, wait) for turn, wait in zip(turns, waits, strict=True)]


def work_of(
    tokens: Sequence[Tokens], tool_seconds: Sequence[Sequence[float]], block: int, group: int
) -> list[list[Turn]]:
    """All rollouts; the first of a group computes the prompt that the others share."""
    return [
        turns_of(row, seconds, block, shared=len(row.prompt_ids) if index % group else 0)
        for index, (row, seconds) in enumerate(zip(tokens, tool_seconds, strict=True))
    ]


def _runs(mask: Sequence[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for bit in mask:
        if runs and runs[-1][0] == bit:
            runs[-1] = (bit, runs[-1][1] + 1)
        else:
            runs.append((bit, 1))
    return runs


def replay(rollouts: Sequence[Sequence[Turn]], cost: EngineCost) -> float:
    """`T*`, seconds."""
    now, end = 0.0, 0.0
    ready = [(0.0, row, 0) for row in range(len(rollouts))]
    heapq.heapify(ready)
    running: dict[tuple[int, int], int] = {}
    while ready or running:
        if not running:
            now = max(now, ready[0][0])
        fresh = 0
        while ready and ready[0][0] <= now:
            _, row, turn = heapq.heappop(ready)
            running[row, turn] = rollouts[row][turn].decoded
            fresh += rollouts[row][turn].new_tokens
        now += cost.decode(len(running)) + cost.prefill * fresh
        for (row, turn), left in list(running.items()):
            if left > 1:
                running[row, turn] = left - 1
                continue
            del running[row, turn]
            back = now + rollouts[row][turn].tool_seconds
            end = max(end, back)
            if turn + 1 < len(rollouts[row]):
                heapq.heappush(ready, (back, row, turn + 1))
    return end


def packed_seconds(rollouts: Sequence[Sequence[Turn]], cost: EngineCost, most: int) -> float:
    """All tokens on the engine, decoded in batches of the most efficient size up to `most`."""
    turns = [turn for rollout in rollouts for turn in rollout]
    cheapest = min(cost.decode(b) / b for b in range(1, most + 1))
    return cost.prefill * sum(turn.new_tokens for turn in turns) + cheapest * sum(turn.decoded for turn in turns)


def lower_bound(rollouts: Sequence[Sequence[Turn]], cost: EngineCost, slots: int | None = None) -> LowerBound:
    alone = cost.decode(1)
    paths = [
        sum(cost.prefill * turn.new_tokens + alone * turn.decoded + turn.tool_seconds for turn in rollout)
        for rollout in rollouts
    ]
    return LowerBound(
        engine=packed_seconds(rollouts, cost, len(rollouts)),
        critical_path=max(paths),
        tool_slots=sum(turn.tool_seconds for rollout in rollouts for turn in rollout) / slots if slots else 0.0,
    )
