"""A shortest solution of a level, by breadth-first search over the places of player and boxes.

Places are numbered, and a set of boxes is a bit mask. A box is never pushed to a place from which no target can be
reached even with all other boxes gone, such as a corner: nothing is lost by it, and most states are.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mmsearch_trl.sokoban.game import CHANGES, Action
from mmsearch_trl.sokoban.level import Cell, Level, reachable


MOST_STATES = 400_000


def solve(level: Level, *, most_moves: int, most_states: int = MOST_STATES) -> list[Action] | None:
    """The fewest moves that solve a level; None where there is no solution of so many, or none is found in time."""
    board = _Board.of(level)
    start = (board.player, board.boxes)
    came_from: dict[tuple[int, int], tuple[tuple[int, int], Action] | None] = {start: None}
    ahead = deque([(start, 0)])
    while ahead and len(came_from) <= most_states:
        state, moves = ahead.popleft()
        if state[1] == board.targets:
            return _path(came_from, state)
        if moves == most_moves:
            continue
        player, boxes = state
        for action, neighbour in board.neighbours.items():
            there = neighbour[player]
            if there < 0:
                continue
            moved = boxes
            if boxes >> there & 1:
                behind = neighbour[there]
                if behind < 0 or boxes >> behind & 1 or board.dead >> behind & 1:
                    continue
                moved = boxes ^ (1 << there) ^ (1 << behind)
            following = (there, moved)
            if following not in came_from:
                came_from[following] = (state, action)
                ahead.append((following, moves + 1))
    return None


def _path(
    came_from: Mapping[tuple[int, int], tuple[tuple[int, int], Action] | None], state: tuple[int, int]
) -> list[Action]:
    actions: list[Action] = []
    while (step := came_from[state]) is not None:
        state, action = step
        actions.append(action)
    return actions[::-1]


@dataclass(frozen=True, slots=True)
class _Board:
    """
    Attributes:
        neighbours: For each action, the place that lies next to each place; -1 for a wall.
        targets, boxes, dead: Bit masks of places.
        player: A place.
    """

    neighbours: dict[Action, list[int]]
    targets: int
    boxes: int
    dead: int
    player: int

    @classmethod
    def of(cls, level: Level) -> "_Board":
        rows, columns = reachable(level.fixed, level.player)
        places = list(zip(rows.tolist(), columns.tolist(), strict=True))
        number = {place: i for i, place in enumerate(places)}
        neighbours: dict[Action, list[int]] = {
            action: [number.get((row + down, column + right), -1) for row, column in places]
            for action, (down, right) in CHANGES.items()
        }
        held = [level.start[place] for place in places]
        boxes = sum(1 << i for i, cell in enumerate(held) if cell in (Cell.BOX, Cell.BOX_ON_TARGET))
        outside = int(np.isin(level.start, (Cell.BOX, Cell.BOX_ON_TARGET)).sum()) - boxes.bit_count()
        targets = [i for i, place in enumerate(places) if level.fixed[place] == Cell.TARGET]
        mask = sum(1 << i for i in targets) if not outside else -1  # a box that nobody reaches: no state is solved
        return cls(neighbours, mask, boxes, _dead(neighbours, targets, len(places)), number[level.player])


def _dead(neighbours: Mapping[Action, list[int]], targets: list[int], count: int) -> int:
    """Places from which no target is reached: those to which none can be pulled back from a target."""
    alive = set(targets)
    ahead = list(targets)
    while ahead:
        place = ahead.pop()
        for neighbour in neighbours.values():
            before = neighbour[place]  # the box comes from here, pushed by a player who stood behind it
            if before >= 0 and neighbour[before] >= 0 and before not in alive:
                alive.add(before)
                ahead.append(before)
    return sum(1 << i for i in range(count) if i not in alive)
