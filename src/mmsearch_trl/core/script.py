"""How a script ends when something is wrong: in one line that says what to do, or in a traceback that shows a defect.

One line is for what a person can put right: the types of `core/errors.py`, and a disk that is full or may not be
written, which can stop any write of any library. All else is a defect and keeps its traceback, a missing file too:
who opens one that a person named says so in a `UserError` (`core/boundaries.py`). A signal ends it in one line too
(`core/interrupts.py`).
"""

import errno
import hashlib
import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from mmsearch_trl.core.errors import (
    EngineError,
    HubError,
    RewardError,
    RunEnded,
    SearchLost,
    UserError,
    VersionError,
    shortened,
)
from mmsearch_trl.core.interrupts import end, ended_by_signals, status_of, tell
from mmsearch_trl.core.redaction import redacted
from mmsearch_trl.core.text import printable


_NOISY = ("httpx", "datasets", "filelock", "fsspec", "urllib3", "asyncio")
_LONGEST_LINE = 2000
"""Characters of the one line: what a library says may hold a whole file."""
_SAID_SECONDS = 600.0
"""An older note is of another launch, whose process had the number that ours has."""
_OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG})


def run_script(script: Callable[[], object]) -> int:
    """Run a script's main function with its logging set up.

    Returns the exit status: 0; 1 after one line; 128 and the signal's number where one ended it (`finish`).

    Raises:
        Exception: whatever the script raised that is a defect.
    """
    console = logging.StreamHandler()
    console.setFormatter(_Redacting("%(levelname)s %(name)s: %(message)s"))
    console.addFilter(_not_of_transformers)
    logging.basicConfig(level=logging.INFO, handlers=[console])
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    if sys.excepthook is sys.__excepthook__:  # that of a notebook, or of a debugger, is left alone
        sys.excepthook = _show_defect
    try:
        with ended_by_signals():
            script()
    except (KeyboardInterrupt, RunEnded) as error:
        tell(error)
        return status_of(error)
    except (UserError, VersionError, HubError, EngineError, SearchLost, RewardError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _OF_THE_DISK:
            raise
        line = printable(shortened(redacted(" ".join(str(error).split())), _LONGEST_LINE)) or type(error).__name__
        if _first_to_say(line):
            print(f"mmsearch: error: {line}", file=sys.stderr)
        return 1
    return 0


def _not_of_transformers(record: logging.LogRecord) -> bool:
    """transformers prints its own log lines; where `CI` is set it hands them on too, and each would stand twice."""
    return not record.name.startswith("transformers.")


def _show_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The traceback of a defect as the interpreter prints it, without secrets."""
    sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace))))


class _Redacting(logging.Formatter):
    """Log lines, tracebacks among them, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def finish(status: int) -> NoReturn:
    """End the process with the status of `run_script`: after a signal at once, whatever its threads are doing."""
    if status > 128:
        end(status)
    sys.exit(status)


def _first_to_say(line: str) -> bool:
    """False where another process of the same launch on this machine has said it: all find the same mistake."""
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == 1:
        return True
    digest = hashlib.sha256(line.encode(errors="replace")).hexdigest()[:16]
    said = Path(tempfile.gettempdir()) / f"mmsearch-said-{os.getppid()}-{os.environ.get('MASTER_PORT')}-{digest}"
    try:
        said.touch(exist_ok=False)
    except FileExistsError:
        return time.time() - said.stat().st_mtime > _SAID_SECONDS
    except OSError:
        pass  # where nothing can be written, saying it twice is better than not at all
    return True
