"""What a look at a recipe found: one line of the report of `mmsearch check`."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from mmsearch_trl.core.errors import EngineError, SearchLost, UserError, VersionError


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report."""

    name: str
    found: str
    level: Level = Level.OK


def examined(name: str, look: Callable[[], str]) -> Finding:
    """What a check found, or the problem that it raised."""
    try:
        return Finding(name=name, found=look())
    except (UserError, VersionError, SearchLost, EngineError) as error:
        return Finding(name=name, found=" ".join(str(error).split()), level=Level.PROBLEM)
