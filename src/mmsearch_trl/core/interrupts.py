"""How a process ends when it is told to: within two seconds, in one line, and with nothing of it left behind.

* The first SIGINT (Ctrl-C) or SIGTERM prints what is saved and raises `KeyboardInterrupt` in the main thread, so that
  what is open is closed. Where that takes longer than `_CLOSING_SECONDS` the process ends all the same, and a second
  signal ends it at once.
* A thread reads the signals, from the pipe that Python's own handler in C writes to: the main thread may be inside a
  long computation, where it runs no handler.
* Who makes what outlives a process (a folder in shared memory, another process) says with `removed_at_the_end` how it
  is removed.
* A signal that somebody else handles (an event loop, a web server, a trainer that saves first) is left to them.
"""

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from mmsearch_trl.core.errors import RunEnded


_CLOSING_SECONDS = 1.5
_SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

_removals: dict[object, Callable[[], object]] = {}
_descriptions: list[Callable[[], str]] = []
_told = threading.Lock()
"""Held once the line is printed."""


@contextmanager
def removed_at_the_end(remove: Callable[[], object]) -> Iterator[None]:
    """Call `remove` on leaving, and also where a signal ends the process before that."""
    key = object()
    _removals[key] = remove
    try:
        yield
    finally:
        if _removals.pop(key, None) is not None:
            remove()


@contextmanager
def described(saved: Callable[[], str]) -> Iterator[None]:
    """Have the line say what is saved, and how to go on; `saved` runs in any thread."""
    _descriptions.append(saved)
    try:
        yield
    except (KeyboardInterrupt, RunEnded) as error:
        tell(error)
        raise
    finally:
        _descriptions.remove(saved)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """While it is open, signals end the process as the module says; in the main thread, and nothing elsewhere."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _told.acquire(blocking=False)
    _told.release()
    # A shell starts what runs in its background with SIGINT ignored, and so it stays.
    mine = {number: _interrupt for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
    before = {number: signal.signal(number, handler) for number, handler in mine.items()}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    old_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watching = threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True)
    watching.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old_writer)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)
        watching.join()
        os.close(reader)


def status_of(error: BaseException) -> int:
    """The exit status of a process that a signal ended, by the exception that it came to."""
    return 128 + _number_of(error)


def tell(ended_by: int | BaseException) -> None:
    """Print the line for a signal, or for the exception that it came to, unless it was printed."""
    if not _told.acquire(blocking=False):
        return
    number = ended_by if isinstance(ended_by, int) else _number_of(ended_by)
    saved = "".join(f": {saved()}" for saved in _descriptions[-1:])
    # A rank that is not the first has nothing to add to what the first says.
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError, ValueError):  # nobody may be listening any more
            print(f"mmsearch: {_SIGNALS[signal.Signals(number)]}{saved}", file=sys.stderr, flush=True)


def end(status: int) -> NoReturn:
    """End the process now: threads that are in the middle of something would keep it, or abort it."""
    for remove in list(_removals.values()):
        with suppress(Exception):  # the next one is to be removed all the same
            remove()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _number_of(error: BaseException) -> int:
    if isinstance(error, RunEnded):
        return signal.SIGTERM
    return error.args[0] if error.args and isinstance(error.args[0], signal.Signals) else signal.SIGINT


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number))


def _watch(reader: int) -> None:
    """Read signals until the pipe is closed."""
    first: int | None = None
    while True:
        ready, _, _ = select.select([reader], [], [], None if first is None else _CLOSING_SECONDS)
        numbers = os.read(reader, 1) if ready else b""
        if ready and not numbers:
            return
        number = numbers[0] if numbers else None
        if number is not None and (number not in _SIGNALS or signal.getsignal(number) is not _interrupt):
            continue
        if first is not None:
            end(128 + (number or first))
        assert number is not None
        first = number
        tell(number)
