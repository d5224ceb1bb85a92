"""Things that belong to an event loop, made when a loop first asks for them.

Semaphores, sessions and calls in flight cannot be used from two loops. A search runtime serves the trainer's loop, and
later perhaps another.
"""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar


ThingT = TypeVar("ThingT")


class PerLoop(Generic[ThingT]):
    """One thing for each event loop.

    Args:
        make: Makes the thing of a loop, on that loop.
    """

    def __init__(self, make: Callable[[], ThingT]) -> None:
        self._make = make
        self._things: dict[asyncio.AbstractEventLoop, ThingT] = {}

    def here(self) -> ThingT:
        """The thing of the loop that is running."""
        loop = asyncio.get_running_loop()
        if loop not in self._things:
            for gone in [other for other in self._things if other.is_closed()]:
                del self._things[gone]
            self._things[loop] = self._make()
        return self._things[loop]

    def pop(self) -> ThingT | None:
        """The same, forgotten, so that the loop's next thing is a new one; None where the loop has none."""
        return self._things.pop(asyncio.get_running_loop(), None)

    def open(self) -> list[tuple[asyncio.AbstractEventLoop, ThingT]]:
        """Every loop that is not closed, with its thing."""
        return [(loop, thing) for loop, thing in list(self._things.items()) if not loop.is_closed()]
