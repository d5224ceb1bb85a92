"""What can go wrong, named after the boundary at which it was noticed.

1. *Vocabulary.* `UserError` is a mistake in what a person gave: a recipe, a data file, an argument. `EngineError`,
   `SearchError` and `SearchLost` are failures of what the run talks to; `VersionError` is one of the installation.
   Anything else that is raised is a defect of this package.
2. *Classification.* Each is raised where the fact is known: who opens a file knows its name, who reads a row its
   number, who calls a server its address. Code above adds where it was (a file, a recipe's key) and never guesses.
3. *Capture.* A failed search is a value (`Observation.failure`), a turn that no engine could write ends its trajectory
   (`StopReason.FAILED`): a bad rollout is data, not a crash.
4. *Surfacing.* A script prints one line for what a person can put right, a traceback for a defect (`core/script.py`).
"""

from mmsearch_trl.core.observation import Failure, FailureKind


class UserError(ValueError):
    """A mistake in what a person gave; the message says what is wrong, where (file, row, key), and what to do."""


class VersionError(RuntimeError):
    """An installed library is missing or outside the range that works; the message says what to install."""


class HubError(Exception):
    """The Hub refuses a run, or cannot be reached; the message says what to do, and where the run is saved."""


class EngineError(Exception):
    """The engine could not write a turn: an infrastructure failure of one trajectory, never of the batch."""


class ContextOverflow(EngineError):
    """The prompt does not fit the engine's window: the end of a trajectory, and nobody's failure."""


class SearchError(Exception):
    """Raised by a backend that cannot answer; the message must hold no key and no page text.

    Args:
        retry_after: Seconds for which the backend asks not to be asked again.
    """

    def __init__(self, kind: FailureKind, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message)
        self.retry_after = retry_after


class SearchLost(Exception):
    """Searches are not answered, so there is no use in going on."""
