"""How a script ends when something is wrong: in one line that says what to do, or in a traceback that shows a defect.

One line is for what the user can mend: a `ValueError` that this package raised itself (every check of recipes, data
and indexes does), a library out of range, a file or model that is not there, an engine that is missing or was started
in a way that cannot serve, a search that is not answered. Anything else is a defect and keeps its traceback.
"""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from mmsearch_trl.engine.base import EngineError
from mmsearch_trl.search.calls.watch import SearchLost
from mmsearch_trl.versions import VersionError


PACKAGE = Path(__file__).parent
_NOISY = ("httpx", "datasets", "filelock", "fsspec", "urllib3", "asyncio")


def run_script(script: Callable[[], object]) -> int:
    """Run a script's main function with its logging set up; returns the exit status: 0, or 1 for a user's error."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        script()
    except (ValueError, OSError, VersionError, EngineError, SearchLost) as error:
        if not is_users(error):
            raise
        print(f"mmsearch: error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


def is_users(error: Exception) -> bool:
    """Whether the message alone says what to mend."""
    if not isinstance(error, ValueError):
        return isinstance(error, OSError | VersionError | EngineError | SearchLost)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(PACKAGE)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
