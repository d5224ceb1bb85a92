"""A level as text, in the notation that Sokoban's players use, and as numbers, in that of gym_sokoban.

    #######        # wall     . target       $ box     * box on a target
    #@ $. #                   (blank) floor  @ player  + player on a target
    #######

One array holds what never moves (walls, floor, targets), one what there is to see.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from mmsearch_trl.core.errors import UserError


Cells = npt.NDArray[np.int8]
LARGEST = 50
"""Rows or columns of a level at most."""


class Cell(IntEnum):
    WALL = 0
    FLOOR = 1
    TARGET = 2
    BOX_ON_TARGET = 3
    BOX = 4
    PLAYER = 5


_SEEN = {"#": Cell.WALL, " ": Cell.FLOOR, "-": Cell.FLOOR, ".": Cell.TARGET, "*": Cell.BOX_ON_TARGET}
_SEEN |= {"$": Cell.BOX, "@": Cell.PLAYER, "+": Cell.PLAYER}
_ON_TARGET = ".*+"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Level:
    """
    Attributes:
        fixed: `(rows, columns)` of wall, floor and target.
        start: `(rows, columns)`, as it is seen before the first move.
    """

    fixed: Cells
    start: Cells

    @classmethod
    def read(cls, text: object) -> "Level":
        """
        Raises:
            UserError: it is no level, or one that could be left by its edge, has no player or several, or other
                numbers of boxes and targets than one another.
        """
        if not isinstance(text, str) or not text.strip():
            raise UserError("a Sokoban level is a text of several lines: # wall, . target, $ box, @ player")
        lines = [line.rstrip() for line in text.strip("\n").splitlines()]
        if len(lines) > LARGEST or max(map(len, lines)) > LARGEST:
            raise UserError(f"a Sokoban level has at most {LARGEST} rows and columns")
        if unknown := sorted(set("".join(lines)) - _SEEN.keys()):
            raise UserError(f"a Sokoban level holds {unknown[0]!r}: only {' '.join(_SEEN)} and blanks may be in it")
        width = max(map(len, lines))
        padded = [line.ljust(width) for line in lines]
        start = np.array([[_SEEN[mark] for mark in line] for line in padded], dtype=np.int8)
        target = np.array([[mark in _ON_TARGET for mark in line] for line in padded])
        fixed = np.where(start == Cell.WALL, Cell.WALL, np.where(target, Cell.TARGET, Cell.FLOOR)).astype(np.int8)
        level = cls(fixed=fixed, start=start)
        level._check()
        return level

    def _check(self) -> None:
        start, players = self.start, int((self.start == Cell.PLAYER).sum())
        boxes = int(np.isin(start, (Cell.BOX, Cell.BOX_ON_TARGET)).sum())
        targets = int((self.fixed == Cell.TARGET).sum())
        if players != 1:
            raise UserError(f"a Sokoban level has one player (@), and this one {players}")
        if boxes != targets or not boxes:
            raise UserError(f"a Sokoban level has as many boxes as targets; {boxes} and {targets} are in this one")
        rows, columns = reachable(self.fixed, self.player)
        if not (
            rows.min() and columns.min() and rows.max() < start.shape[0] - 1 and columns.max() < start.shape[1] - 1
        ):
            raise UserError("a Sokoban level has walls (#) all around the player")

    @property
    def player(self) -> tuple[int, int]:
        [[row, column]] = np.argwhere(self.start == Cell.PLAYER).tolist()
        return row, column

    def written(self) -> str:
        """The text that `read` reads."""
        return as_text(self.fixed, self.start)


def as_text(fixed: Cells, seen: Cells) -> str:
    marks = {Cell.WALL: "#", Cell.FLOOR: " ", Cell.TARGET: ".", Cell.BOX_ON_TARGET: "*", Cell.BOX: "$"}

    def mark(row: int, column: int) -> str:
        cell = Cell(int(seen[row, column]))
        if cell is not Cell.PLAYER:
            return marks[cell]
        return "+" if fixed[row, column] == Cell.TARGET else "@"

    rows: Sequence[Sequence[str]] = [[mark(r, c) for c in range(seen.shape[1])] for r in range(seen.shape[0])]
    return "\n".join("".join(row) for row in rows)


def reachable(fixed: Cells, start: tuple[int, int]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows and columns of the cells that walls do not keep from `start`, boxes aside."""
    left = set(map(tuple, np.argwhere(fixed != Cell.WALL).tolist()))
    found: list[tuple[int, int]] = []
    ahead = [start]
    while ahead:
        row, column = place = ahead.pop()
        if place in left:
            left.remove(place)
            found.append(place)
            ahead += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
    rows, columns = np.array(sorted(found)).T
    return rows, columns
