"""How a script ends when something is wrong: in one line that says what to do, or in a traceback that shows a defect.

One line is for what a person can put right (`core/errors.py`), and for files and models that the system or a library
says are not there. Anything else is a defect and keeps its traceback.
"""

import logging
import sys
from collections.abc import Callable

from mmsearch_trl.core.errors import EngineError, SearchLost, UserError, VersionError


_NOISY = ("httpx", "datasets", "filelock", "fsspec", "urllib3", "asyncio")


def run_script(script: Callable[[], object]) -> int:
    """Run a script's main function with its logging set up; returns the exit status: 0, or 1 for a user's error."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        script()
    except (UserError, OSError, VersionError, EngineError, SearchLost) as error:
        print(f"mmsearch: error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
