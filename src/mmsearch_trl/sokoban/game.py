"""The rules, as gym_sokoban has them: a player walks and pushes single boxes, and every attempt costs a step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmsearch_trl.sokoban.level import Cell, Cells, Level


Action = Literal["up", "down", "left", "right"]
CHANGES: Mapping[Action, tuple[int, int]] = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
MAX_STEPS = 120
MOST_MOVES = 50
"""Of an answer that are carried out."""
STEP_REWARD, ON_TARGET_REWARD, OFF_TARGET_REWARD, SOLVED_REWARD = -0.1, 1.0, -1.0, 10.0
_FREE = (Cell.FLOOR, Cell.TARGET)
_BOXES = (Cell.BOX, Cell.BOX_ON_TARGET)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step came to.

    Attributes:
        reward: -0.1; 1 more for a box that came on a target, 1 less for one that left it; 10 more for the last.
        solved: Whether every box is on a target.
        done: Whether the game is over, also for want of steps.
    """

    reward: float
    solved: bool
    done: bool


class Game:
    """A level being played."""

    def __init__(self, level: Level) -> None:
        self._fixed = level.fixed
        self.cells: Cells = level.start.copy()
        self._player = level.player
        self.steps = 0

    @property
    def on_target(self) -> int:
        """Boxes that are on a target."""
        return int((self.cells == Cell.BOX_ON_TARGET).sum())

    @property
    def solved(self) -> bool:
        return not bool((self.cells == Cell.BOX).any())

    def step(self, action: Action) -> Outcome:
        """Walk or push, or stay where neither can be done."""
        before = self.on_target
        change = np.array(CHANGES[action])
        there, behind = self._player + change, self._player + 2 * change
        if self.cells[tuple(there)] in _BOXES and self.cells[tuple(behind)] in _FREE:
            self.cells[tuple(behind)] = Cell.BOX_ON_TARGET if self._is_target(behind) else Cell.BOX
            self.cells[tuple(there)] = self._fixed[tuple(there)]
        if self.cells[tuple(there)] in _FREE:
            self.cells[self._player] = self._fixed[self._player]
            self._player = (int(there[0]), int(there[1]))
            self.cells[self._player] = Cell.PLAYER
        self.steps += 1
        change_of_boxes = self.on_target - before
        reward = STEP_REWARD
        reward += ON_TARGET_REWARD if change_of_boxes > 0 else OFF_TARGET_REWARD if change_of_boxes < 0 else 0.0
        reward += SOLVED_REWARD if self.solved else 0.0
        return Outcome(reward, self.solved, self.solved or self.steps >= MAX_STEPS)

    def _is_target(self, place: np.ndarray) -> bool:
        return bool(self._fixed[tuple(place)] == Cell.TARGET)
