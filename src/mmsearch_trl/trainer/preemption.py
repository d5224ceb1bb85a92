"""SIGTERM as a request to save and end: how a scheduler takes a node away, and how a job is stopped with care.

The run ends between two micro-batches, or in the middle of a rollout, which is abandoned. Weights and optimizer are
then those of the last whole step; what else had moved on since is put back (`StepEnd`), so that the checkpoint is that
of this step, and the resumed run takes the same course. A rollout that was abandoned comes out the same again.
"""

import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch

from mmsearch_trl.trainer.batch_position import BatchPosition


class Preemption:
    """Whether the run was asked to end.

    Args:
        abandon: Gives up what the main thread waits for.
    """

    def __init__(self, abandon: Callable[[], None]) -> None:
        self.requested = False
        self._abandon = abandon

    @contextmanager
    def on_sigterm(self) -> Iterator[None]:
        """Take SIGTERM for the request; signals have handlers in the main thread alone."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._request)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._abandon()


@dataclass(frozen=True, slots=True)
class StepEnd:
    """What moves on between two optimizer steps, as it was at the end of one."""

    of_python: Any
    of_numpy: Any
    of_torch: torch.Tensor
    of_cuda: list[torch.Tensor]
    num_input_tokens_seen: int
    batch: BatchPosition | None

    @classmethod
    def of(cls, num_input_tokens_seen: int, batch: BatchPosition | None = None) -> "StepEnd":
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        states = (random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)
        return cls(*states, num_input_tokens_seen, batch)

    def restore_random(self) -> None:
        random.setstate(self.of_python)
        np.random.set_state(self.of_numpy)
        torch.set_rng_state(self.of_torch)
        if self.of_cuda:
            torch.cuda.set_rng_state_all(self.of_cuda)
