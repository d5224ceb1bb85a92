"""Levels from a seed, each with a solution that the game confirms."""

from itertools import islice

import pytest

from mmsearch_trl.sokoban.game import MOST_MOVES, Game
from mmsearch_trl.sokoban.generator import SIZES, levels
from mmsearch_trl.sokoban.level import Cell, Level
from mmsearch_trl.sokoban.search import solve


@pytest.mark.parametrize(
    ("kind", "count"), [("small-v0", 1000), ("small-v1", 20), ("v0", 5), ("v1", 5), ("large-v0", 5)]
)
def test_levels_are_solved_by_a_search_and_differ(kind: str, count: int) -> None:
    size, texts = SIZES[kind], set()
    for solved in islice(levels(size, seed=0), count):
        level, moves = solved.level, solved.solution
        texts.add(level.written())
        assert level.start.shape == (size.rows, size.columns) and (level.start == Cell.BOX).sum() == size.boxes
        assert not (level.start == Cell.BOX_ON_TARGET).any() and level.fixed[level.player] == Cell.FLOOR
        game = Game(level)
        outcomes = [game.step(move) for move in moves]
        assert 4 <= len(moves) <= MOST_MOVES
        assert [each.solved for each in outcomes] == [False] * (len(moves) - 1) + [True]
    assert len(texts) == count


def test_a_seed_makes_the_same_levels_and_another_others() -> None:
    drawn = [[each.level.written() for each in islice(levels(SIZES["small-v0"], seed), 8)] for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] and not set(drawn[0]) & set(drawn[2])


def test_what_is_generated_is_read_again() -> None:
    for solved in islice(levels(SIZES["small-v1"], seed=1), 10):
        again = Level.read(solved.level.written())
        assert (again.fixed == solved.level.fixed).all() and (again.start == solved.level.start).all()


@pytest.mark.parametrize(
    ("text", "moves"),
    [
        ("######\n#@$ .#\n######", ["right", "right"]),
        ("#####\n#@$.#\n#####", ["right"]),
        ("######\n#.$ @#\n######", ["left", "left"]),
        ("######\n#$ @.#\n######", None),  # a box in a corner
        ("######\n#@ $.#\n#    #\n#.$  #\n######", ["right", "right", "down", "down", "left"]),
        ("#########\n#@$  .###\n####### #\n#######$#\n#######.#\n#########", None),  # a box that nobody reaches
    ],
)
def test_a_solution_is_a_shortest_one(text: str, moves: list[str] | None) -> None:
    found = solve(Level.read(text), most_moves=20)
    assert (found and len(found)) == (moves and len(moves))


def test_a_search_is_bounded() -> None:
    level = Level.read("#######\n#@$  .#\n#     #\n#######")
    assert solve(level, most_moves=2) is None and solve(level, most_moves=20, most_states=3) is None
    assert solve(level, most_moves=3) == ["right", "right", "right"]
