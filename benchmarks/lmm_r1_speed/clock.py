"""How a training step's time divides over its parts, on the clock and of processors."""

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
from transformers import TrainerCallback


PARTS = ("generate", "score", "train", "sync")
_ON_SERVER = ("generate", "sync")
"""Parts in which a server works too; in the others it has nothing to do, and polls."""


def processor_seconds() -> float:
    """Of this process and a server that it started, but for vLLM's scheduler, which polls while a model computes."""
    return time.process_time() + _server_seconds()


def _server_seconds() -> float:
    children = psutil.Process().children(recursive=True)
    times = [child.cpu_times() for child in children if not child.name().startswith("VLLM::Engine")]
    return sum(each.user + each.system for each in times)


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step by part; the parts add up to it.

    `generate` is from rows to sampled tokens, `score` rewards and log-probs of the policy and the reference, `train`
    losses, gradients and the optimizer, `sync` the way of the weights to the sampler.

    Attributes:
        seconds: On the clock.
        processor: Processor time, which other work on the machine changes little: this process's and, where it works
            too, the server's.
    """

    seconds: dict[str, float]
    processor: dict[str, float]


class Clock(TrainerCallback):
    """Times methods, without what is timed inside of them; what no method accounts for is `train`."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._parts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(3))
        self._inner = np.zeros(3)
        self._started = np.zeros(3)

    def watch(self, owner: Any, method: str, part: str) -> None:
        """Count the time of a method, replaced on this object alone, as `part`."""
        original = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started, outer = _now(), self._inner
            self._inner = np.zeros(3)
            try:
                return original(*args, **kwargs)
            finally:
                took = _now() - started
                self._parts[part] += took - self._inner
                self._inner = outer + took

        setattr(owner, method, timed)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._parts.clear()
        self._started = _now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        took = _now() - self._started
        self._parts["train"] += took - sum(self._parts.values(), np.zeros(3))
        wall = {part: float(self._parts[part][0]) for part in PARTS}
        processor = {part: float(self._parts[part][1 : 3 if part in _ON_SERVER else 2].sum()) for part in PARTS}
        self.steps.append(Step(wall, processor))


def _now() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time(), _server_seconds()])
