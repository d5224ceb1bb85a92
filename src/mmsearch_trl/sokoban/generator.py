"""Levels from a seed, each proved solvable.

A room is cut out of the rock along a random walk. Boxes are put on the targets and pulled away from them at random, so
that pushing them back is a solution; then a search from the start (`search.py`) has to find one that is no longer than
the moves of an answer that are carried out. Rooms in which that fails are thrown away.

Sizes are those of gym_sokoban's environments of these names.
"""

import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mmsearch_trl.sokoban.game import CHANGES, MOST_MOVES, Action
from mmsearch_trl.sokoban.level import Cell, Cells, Level, reachable
from mmsearch_trl.sokoban.search import solve


_FEWEST_MOVES = 4
_TURN_SHARE = 0.35
"""Of a walk's steps that begin with a new direction."""
_STEPS_BACK, _PULL_SHARE = 60, 0.8
_BRUSHES = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1))


Place = tuple[int, int]


class Size(NamedTuple):
    rows: int
    columns: int
    boxes: int


SIZES: Mapping[str, Size] = {
    "small-v0": Size(7, 7, 2),
    "small-v1": Size(7, 7, 3),
    "v0": Size(10, 10, 3),
    "v1": Size(10, 10, 4),
    "large-v0": Size(13, 11, 3),
}


@dataclass(frozen=True, slots=True)
class Solved:
    """A level and a shortest solution."""

    level: Level
    solution: list[Action]


def levels(size: Size, seed: int) -> Iterator[Solved]:
    """Different levels without end; the same for the same seed."""
    rng = random.Random(f"sokoban {size} {seed}")
    seen: set[str] = set()
    while True:
        level = _draw(size, rng)
        if level is None or (text := level.written()) in seen:
            continue
        solution = solve(level, most_moves=MOST_MOVES)
        if solution is not None and len(solution) >= _FEWEST_MOVES:
            seen.add(text)
            yield Solved(level, solution)


def _draw(size: Size, rng: random.Random) -> Level | None:
    """A room whose boxes all stand beside their targets; None where boxes cannot be pulled off."""
    fixed = _room(size, rng)
    floor = [(int(row), int(column)) for row, column in np.argwhere(fixed == Cell.FLOOR)]
    if len(floor) < 3 * size.boxes:
        return None
    boxes = rng.sample(floor, size.boxes)
    for box in boxes:
        fixed[box] = Cell.TARGET
    targets = set(boxes)
    player = rng.choice([place for place in floor if place not in targets])
    boxes, player = _pull_apart(set(floor), boxes, player, rng)
    if targets & {*boxes, player}:
        return None
    start = fixed.copy()
    for box in boxes:
        start[box] = Cell.BOX
    start[player] = Cell.PLAYER
    return Level(fixed=fixed, start=start)


def _room(size: Size, rng: random.Random) -> Cells:
    """Rock, with floor along a random walk, and of that what hangs together."""
    fixed = np.full((size.rows, size.columns), Cell.WALL, dtype=np.int8)
    row, column = rng.randrange(1, size.rows - 1), rng.randrange(1, size.columns - 1)
    first, directions = (row, column), list(CHANGES.values())
    down, right = rng.choice(directions)
    for _ in range(int(1.7 * (size.rows + size.columns))):
        if rng.random() < _TURN_SHARE:
            down, right = rng.choice(directions)
        row = min(max(row + down, 1), size.rows - 2)
        column = min(max(column + right, 1), size.columns - 2)
        wide, high = rng.choice(_BRUSHES)
        fixed[row : min(row + high, size.rows - 1), column : min(column + wide, size.columns - 1)] = Cell.FLOOR
    fixed[first] = Cell.FLOOR
    connected = np.full_like(fixed, Cell.WALL)
    connected[reachable(fixed, first)] = Cell.FLOOR
    return connected


def _pull_apart(
    floor: Collection[Place], boxes: list[Place], player: Place, rng: random.Random
) -> tuple[list[Place], Place]:
    """Walk at random, backwards, and mostly take along the box in front of a step back."""
    held = set(boxes)
    for down, right in rng.choices(list(CHANGES.values()), k=_STEPS_BACK * len(boxes)):
        back = (player[0] - down, player[1] - right)
        if back not in floor or back in held:
            continue
        ahead = (player[0] + down, player[1] + right)
        if ahead in held and rng.random() < _PULL_SHARE:
            held.remove(ahead)
            held.add(player)
        player = back
    return sorted(held), player
