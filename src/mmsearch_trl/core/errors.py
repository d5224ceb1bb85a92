"""What can go wrong, named after the boundary at which it was noticed.

1. *Vocabulary.* `UserError` is a mistake in what a person gave: a recipe, a data file, a folder, a model, an argument
   of a public class. `VersionError` is one of the installation. `EngineError`, `SearchError`, `SearchLost`,
   `RewardError` and `HubError` are failures of what a run talks to. Anything else that is raised is a defect of this
   package: `ValueError` for an argument that our own parts should not have given, `RuntimeError` for a call out of
   turn.
2. *Classification.* Each is raised where the fact is known: who opens a file knows its name, who reads a row its
   number, who calls a server its address. What the system or a library raises is translated there, around that one
   call (`core/boundaries.py`). Code above adds where it was (a file, a recipe's key) and never guesses: it catches
   these types, and not what they are made of.
3. *Capture.* A failed search is a value (`Observation.failure`), a turn that no engine could write ends its trajectory
   (`StopReason.FAILED`), a bad row is skipped where the recipe says so (`RowError`): a bad rollout and a bad row are
   data, not a crash. A defect in one rollout ends that rollout alone, with its traceback in the log; one in all of
   them ends the run.
4. *Surfacing.* A script prints one line for what a person can put right, a traceback for a defect (`core/script.py`).
"""

from mmsearch_trl.core.observation import Failure, FailureKind


class UserError(ValueError):
    """A mistake in what a person gave; the message says what is wrong, where (file, row, key), and what to do."""


def shortened(text: str, longest: int = 600) -> str:
    """A text for a message, cut in its middle where it is longer: what it begins and ends with says most."""
    return text if len(text) <= longest else f"{text[: longest - 100]} ... {text[-80:]}"


class VersionError(RuntimeError):
    """An installed library is missing or outside the range that works; the message says what to install."""


class HubError(Exception):
    """The Hub refuses a run, or cannot be reached; the message says what to do, and where the run is saved."""


class EngineError(Exception):
    """The engine could not write a turn: an infrastructure failure of one trajectory, never of the batch."""


class EngineLost(EngineError):
    """Rollouts are not written, so there is no use in going on; raised by all ranks of a run together."""


class ContextOverflow(EngineError):
    """The prompt does not fit the engine's window: the end of a trajectory, and nobody's failure."""


class SearchError(Exception):
    """Raised by a backend that cannot answer; the message must hold no key and no page text.

    Args:
        retry_after: Seconds for which the backend asks not to be called again.
    """

    def __init__(self, kind: FailureKind, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message)
        self.retry_after = retry_after


class RewardError(Exception):
    """A reward server gives no rewards, so that nothing can be trained or scored; the message names its address."""


class RunEnded(BaseException):
    """Raised between two steps of a run that was told to end (SIGTERM); no error, so that nobody takes it for one."""


class SearchLost(Exception):
    """Searches are not answered, so there is no use in going on; raised by all ranks of a run together."""
