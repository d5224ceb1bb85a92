"""How fast the engine is, measured through the very path that rollouts take: the client, HTTP, the server, the model.

* `t(b)`: `b` requests at once decode a short and a long turn; the difference of the two times over the difference of
  the lengths is the time of one iteration, free of the cost of requests and prefill. The faster of two tries counts:
  what other processes take is not the engine's.
* `P`: prompts of growing length, one token each; the slope over all new tokens is the time per prompt token, and what
  remains at length nought is the cost of a request, which the ideal does not charge.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from benchmarks.rollout.replay import EngineCost
from mmsearch_trl.engine.base import Engine, Sampling


BATCHES = (1, 2, 4, 8, 16, 32, 64)
_SHORT, _LONG = 8, 72
_PROMPT = 400
"""About the middle of a rollout."""
_PREFILL_PROMPTS = 16
_PREFILL_LENGTHS = (64, 192, 384, 768)
_TRIES = 2
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

    async def timed(count: int, length: int, decoded: int) -> float:
        prompts = [rng.choices(word_ids, k=length) for _ in range(count)]
        start = perf_counter()
        await asyncio.gather(*(engine.generate(ids, (), Sampling(max_tokens=decoded)) for ids in prompts))
        return perf_counter() - start

    await timed(BATCHES[-1], _PROMPT, _SHORT)  # warm-up
    decode = []
    for b in BATCHES:
        pairs = [(await timed(b, _PROMPT, _SHORT), await timed(b, _PROMPT, _LONG)) for _ in range(_TRIES)]
        short, long = (min(times) for times in zip(*pairs, strict=True))
        decode.append(max(long - short, 1e-6) / (_LONG - _SHORT))
    prefill = [
        min([await timed(_PREFILL_PROMPTS, length, 1) for _ in range(_TRIES)]) / _PREFILL_PROMPTS
        for length in _PREFILL_LENGTHS
    ]
    slope, rest = np.polyfit(_PREFILL_LENGTHS, prefill, 1)
    return fitted(decode, max(float(slope), 0.0), float(rest))


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
