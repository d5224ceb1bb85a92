"""Until when the parts of a search (its thumbnails, its pages) may take.

A search that waits for the last of its parts loses all of them to one that hangs: its own time is over before it can
hand anything back. So whoever calls a backend says until when (`ending_at`), and whoever gathers parts stops a little
before that (`seconds_for_parts`), with those that have come. However the limits are set, the inner one is the shorter.
"""

import asyncio
import math
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from mmsearch_trl.search.calls.cost import note_cut


ResultT = TypeVar("ResultT")

_HANDING_BACK = 0.1
"""Of the time of a call, the share that is kept for handing back what has come."""

_parts_end_at: ContextVar[float] = ContextVar("mmsearch_parts_end_at", default=math.inf)


@contextmanager
def ending_at(moment: float) -> Iterator[None]:
    """Within, and in the tasks that are begun there, a call ends at `moment` of the loop's clock."""
    now = asyncio.get_running_loop().time()
    token = _parts_end_at.set(moment - _HANDING_BACK * max(0.0, moment - now))
    try:
        yield
    finally:
        _parts_end_at.reset(token)


def seconds_for_parts(most: float = math.inf) -> float | None:
    """Seconds after which the call that this task belongs to hands back what has come: `most` or fewer; None for any
    number."""
    left = min(most, max(0.0, _parts_end_at.get() - asyncio.get_running_loop().time()))
    return None if math.isinf(left) else left


async def in_time(parts: Iterable[Coroutine[Any, Any, ResultT]], most: float = math.inf) -> list[ResultT | None]:
    """What parts give that end in time; the others are cancelled, and None.

    Raises:
        Exception: of a part; one that is not to end the search raises none.
    """
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        if tasks and (await asyncio.wait(tasks, timeout=seconds_for_parts(most)))[1]:
            note_cut()
        return [task.result() if task.done() else None for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
