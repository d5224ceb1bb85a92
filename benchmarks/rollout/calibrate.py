"""How fast the engine is, measured through the very path that rollouts take: the client, HTTP, the server, the model.

* `t(b)`: `b` requests at once decode a short and a long turn after prompts that are cached; the difference of the two
  times over the difference of the lengths is the time of one iteration, free of the cost of requests and prefill.
* `P`: prompts of growing length, one token each; the slope over all new tokens is the time per prompt token, and what
  remains at length nought is the cost of a request, which the ideal does not charge.

A machine is not equally fast all the time: the engine is calibrated between the runs, and the median counts.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import numpy as np
from benchmarks.rollout.replay import EngineCost

from mmsearch_trl.core.completion import SamplingParams
from mmsearch_trl.engine.base import Engine


BATCHES = (1, 2, 4, 8, 16, 32, 64)
_SHORT, _LONG = 8, 136
_PROMPT = 400
"""About the middle of a rollout."""
_PREFILL_PROMPTS = 16
_PREFILL_LENGTHS = (64, 192, 384, 768)
_GOOD_FIT = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Measurements and what was made of them, seconds.

    Attributes:
        decode: Measured `t(b)` for each of `BATCHES`.
        a: Of the fit `t(b) = a + c·b`, which minimises relative errors.
        residual: Its largest relative error. When it exceeds a tenth, `cost` interpolates the measurements instead.
        request: Cost of a request without its tokens, `_PREFILL_PROMPTS` of them in flight at once.
    """

    decode: tuple[float, ...]
    a: float
    c: float
    residual: float
    prefill: float
    request: float

    @property
    def linear(self) -> bool:
        return self.residual <= _GOOD_FIT

    def cost(self) -> EngineCost:
        fitted = tuple(self.a + self.c * b for b in BATCHES)
        return EngineCost(BATCHES, fitted if self.linear else self.decode, self.prefill)


async def calibrate(engine: Engine, word_ids: Sequence[int]) -> Calibration:
    """Measure an engine.

    Args:
        word_ids: Ids of ordinary words, of which prompts are drawn; no two prompts share a prefix.
    """
    rng = random.Random(0)

    def prompts(count: int, length: int) -> list[list[int]]:
        return [rng.choices(word_ids, k=length) for _ in range(count)]

    async def timed(batch: Sequence[Sequence[int]], decoded: int) -> float:
        start = perf_counter()
        await asyncio.gather(*(engine.generate(ids, (), SamplingParams(max_tokens=decoded)) for ids in batch))
        return perf_counter() - start

    cached = prompts(BATCHES[-1], _PROMPT)
    await timed(cached, _SHORT)
    decode = []
    for b in BATCHES:
        difference = -await timed(cached[:b], _SHORT) + await timed(cached[:b], _LONG)
        decode.append(max(difference, 1e-6) / (_LONG - _SHORT))
    prefill = [await timed(prompts(_PREFILL_PROMPTS, length), 1) / _PREFILL_PROMPTS for length in _PREFILL_LENGTHS]
    slope, rest = np.polyfit(_PREFILL_LENGTHS, prefill, 1)
    return fitted(decode, max(float(slope), 0.0), float(rest))


def typical(calibrations: Sequence[Calibration]) -> Calibration:
    """The median of every measurement."""
    decode = [median(values) for values in zip(*(each.decode for each in calibrations), strict=True)]
    return fitted(decode, median(each.prefill for each in calibrations), median(each.request for each in calibrations))


def fitted(decode: Sequence[float], prefill: float, request: float) -> Calibration:
    """Fit `t(b)` to measurements at `BATCHES`."""
    measured = np.asarray(decode)
    design = np.stack([np.ones(len(BATCHES)), np.asarray(BATCHES, dtype=float)], axis=1)
    (a, c), *_ = np.linalg.lstsq(design / measured[:, None], np.ones(len(BATCHES)), rcond=None)
    residual = float(np.abs(design @ (a, c) / measured - 1).max())
    return Calibration(
        decode=tuple(float(value) for value in decode),
        a=float(a),
        c=float(c),
        residual=residual,
        prefill=prefill,
        request=request,
    )
