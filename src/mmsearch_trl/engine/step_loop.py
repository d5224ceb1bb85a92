"""Steps a batched generator in a thread of its own; ranks that share one model step it together.

Ranks of a group each hold a part of the model and must compute the same batch in every step. Before each step they
tell one another, in one exchange, what is new, what was cancelled, how far their preparation has come and whether
they want to leave; everything that follows is computed from what all of them said, so that it is the same on each:

1. A request joins one queue, in the order of the exchange and then of the ranks, and every rank prepares it.
2. It enters the batch once every rank has prepared it, in that order; where one rank cannot, it fails on all.
3. A step that fails on one rank makes all of them start over with an empty batch.
4. Ranks leave together, when all want to and nothing is under way. Until then one without requests steps for the rest.

A rank by itself does the same with an exchange of one. Images travel once, and only to ranks of a group.
"""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from threading import Event, Lock, Thread
from typing import Any, Protocol

import torch.distributed as dist
from PIL import Image

from mmsearch_trl.core.completion import Completion, SamplingParams
from mmsearch_trl.core.errors import EngineError
from mmsearch_trl.core.images import ImageInput


logger = logging.getLogger(__name__)

_SHORTEST_REST, _LONGEST_REST = 0.001, 0.016
"""Seconds that a group with nothing to do waits between two exchanges: twice as long each time."""


@dataclass(frozen=True, slots=True)
class Request:
    """One turn to write. Its images are named by their keys, in order."""

    name: str
    token_ids: tuple[int, ...]
    image_keys: tuple[str, ...]
    sampling: SamplingParams


class Stepper(Protocol):
    """What the loop drives. `prepare` runs in a thread of its own, one call at a time, all else in the loop's."""

    def prepare(self, request: Request, images: Sequence[Image.Image]) -> Any:
        """Do what needs no batch, such as processing images. Returns what `add` takes."""
        ...

    def add(self, request: Request, prepared: Any) -> None: ...

    def abort(self, name: str) -> None: ...

    def step(self) -> list[tuple[str, Completion | EngineError]]:
        """Compute one step; returns the requests that it finished, by name."""
        ...

    @property
    def busy(self) -> bool:
        """Whether there is something to step."""
        ...

    def start_over(self) -> None:
        """Forget every request, after a step that failed."""
        ...


@dataclass(slots=True)
class _Share:
    """What one rank tells the others."""

    new: list[Request] = field(default_factory=list)
    images: dict[str, Image.Image] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    leaving: bool = False
    prepared: int = 0
    """Requests from the head of the queue on whose preparation has ended."""
    unpreparable: dict[str, str] = field(default_factory=dict)
    """Those of them that failed, and why."""
    failure: str | None = None
    """Why the last step failed here."""


class StepLoop:
    """Writes turns until it is left.

    Args:
        group: Ranks that step together; a gloo group, since the exchange must not queue behind GPU work.
        initialize: Called first in the loop's thread.
    """

    def __init__(
        self, stepper: Stepper, group: dist.ProcessGroup | None = None, initialize: Callable[[], None] | None = None
    ) -> None:
        self._stepper = stepper
        self._group = group
        self._initialize = initialize
        rank = dist.get_rank(group) if group is not None else 0
        self._names = (f"{rank}/{i}" for i in itertools.count())
        self._lock = Lock()  # for what the callers' threads touch: the next three
        self._next = _Share()
        self._waiting: dict[str, asyncio.Future[Completion]] = {}
        self._error: EngineError | None = None
        self._news = Event()
        self._images: dict[str, Image.Image] = {}
        self._queue: deque[tuple[Request, Future[Any]]] = deque()
        self._dropped: set[str] = set()
        self._active: set[str] = set()
        self._failure: str | None = None
        self._rest_seconds = _SHORTEST_REST
        self.busy_seconds = 0.0
        """Time spent stepping."""
        self._preparing = ThreadPoolExecutor(1, "prepare")
        self._thread = Thread(target=self._run, name="step", daemon=True)
        self._thread.start()

    async def generate(
        self, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: SamplingParams
    ) -> Completion:
        """Raises: EngineError."""
        future = asyncio.get_running_loop().create_future()
        keys = tuple(image.key for image in images)
        with self._lock:
            if self._error is not None or self._next.leaving:
                raise self._error or EngineError("the rollout is over")
            request = Request(next(self._names), tuple(token_ids), keys, sampling)
            self._waiting[request.name] = future
            self._next.new.append(request)
            self._next.images |= {image.key: image.image for image in images if image.key not in self._images}
        self._news.set()
        try:
            return await future
        except asyncio.CancelledError:
            self._cancel([request.name])
            raise

    def leave(self) -> None:
        """Abandon what this rank still waits for, and return once every rank has left.

        Raises:
            EngineError: the loop broke; nothing more was written after that.
        """
        with self._lock:
            left = list(self._waiting)
            self._next.leaving = True
        for name in left:
            self._settle(name, EngineError("the rollout ended before this turn did"))
        self._cancel(left)
        self._thread.join()
        self._preparing.shutdown(wait=True, cancel_futures=True)
        if self._error is not None:
            raise self._error

    def _cancel(self, names: Collection[str]) -> None:
        with self._lock:
            for name in names:
                self._waiting.pop(name, None)
            self._next.cancelled.extend(names)
        self._news.set()

    def _run(self) -> None:
        try:
            if self._initialize is not None:
                self._initialize()
            while not self._round():
                pass
        except BaseException as error:
            logger.exception("The step loop broke.")
            with self._lock:
                self._error = EngineError(f"the step loop broke: {_described(error)}")
            for name in list(self._waiting):
                self._settle(name, self._error)

    def _round(self) -> bool:
        """One exchange and at most one step. Returns whether every rank has left."""
        shares = self._exchange(self._share())
        self._follow(shares)
        if self._stepper.busy:
            self._step()
            return False
        if not self._queue and all(share.leaving for share in shares):
            return True
        self._rest()
        return False

    def _share(self) -> _Share:
        self._news.clear()
        with self._lock:
            share, self._next = self._next, _Share(leaving=self._next.leaving)
        ended = list(takewhile(lambda entry: entry[1].done(), self._queue))
        share.prepared = len(ended)
        for request, prepared in ended:
            if not prepared.cancelled() and (error := prepared.exception()) is not None:
                share.unpreparable[request.name] = _described(error)
        share.failure, self._failure = self._failure, None
        return share

    def _exchange(self, share: _Share) -> list[_Share]:
        if self._group is None:
            return [share]
        shares: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(shares, share, group=self._group)
        return shares

    def _follow(self, shares: Sequence[_Share]) -> None:
        """Bring queue and batch to what the ranks agreed upon."""
        failure = next((share.failure for share in shares if share.failure is not None), None)
        if failure is not None:
            self._start_over(failure)
        unpreparable = {name: why for share in shares for name, why in share.unpreparable.items()}
        prepared = min(share.prepared for share in shares)
        for share in shares:
            self._images |= share.images
        for request in (request for share in shares for request in share.new):
            images = [self._images[key] for key in request.image_keys]
            preparing = self._preparing.submit(self._stepper.prepare, request, images)
            preparing.add_done_callback(lambda _: self._news.set())
            self._queue.append((request, preparing))
            self._rest_seconds = _SHORTEST_REST
        # In one order on all ranks: what is freed first is reused first, and the batches of the ranks would part.
        self._drop(sorted(name for share in shares for name in share.cancelled))
        for _ in range(prepared):
            request, preparing = self._queue.popleft()
            self._admit(request, preparing, unpreparable.get(request.name))

    def _drop(self, names: Sequence[str]) -> None:
        queued = {request.name: preparing for request, preparing in self._queue}
        for name in names:
            if name in self._active:
                self._active.remove(name)
                self._stepper.abort(name)
            elif name in queued:  # it keeps its place: ranks count from the head of the queue
                self._dropped.add(name)
                queued[name].cancel()

    def _admit(self, request: Request, preparing: Future[Any], problem: str | None) -> None:
        if request.name in self._dropped:
            self._dropped.remove(request.name)
            return
        if problem is None:
            try:
                self._stepper.add(request, preparing.result())
            except Exception as error:
                problem = _described(error)
        if problem is None:
            self._active.add(request.name)
        else:
            self._settle(request.name, EngineError(problem))

    def _step(self) -> None:
        started = time.perf_counter()
        self._rest_seconds = _SHORTEST_REST
        try:
            outcomes = self._stepper.step()
        except Exception as error:
            logger.exception("A step failed; the turns under way are lost.")
            self._failure = _described(error)
            return
        finally:
            self.busy_seconds += time.perf_counter() - started
        for name, outcome in outcomes:
            self._active.discard(name)
            self._settle(name, outcome)

    def _start_over(self, failure: str) -> None:
        self._stepper.start_over()
        for name in self._active:
            self._settle(name, EngineError(failure))
        self._active.clear()

    def _rest(self) -> None:
        """Wait for something to do. The ranks of a group cannot wake one another: they look again and again."""
        if self._group is None:
            self._news.wait()
            return
        self._news.wait(self._rest_seconds)
        self._rest_seconds = min(2 * self._rest_seconds, _LONGEST_REST)

    def _settle(self, name: str, outcome: Completion | EngineError) -> None:
        """Answer the call that waits for a turn, if it is one of this rank's and still waits."""
        with self._lock:
            future = self._waiting.pop(name, None)
        if future is not None:
            with suppress(RuntimeError):  # its event loop is closed
                future.get_loop().call_soon_threadsafe(_resolve, future, outcome)


def _resolve(future: asyncio.Future[Completion], outcome: Completion | EngineError) -> None:
    if future.done():
        return
    if isinstance(outcome, EngineError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _described(error: BaseException) -> str:
    return str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
