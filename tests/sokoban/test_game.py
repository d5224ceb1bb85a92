"""The rules of gym_sokoban."""

import pytest

from mmsearch_trl.sokoban.game import MAX_STEPS, Action, Game
from mmsearch_trl.sokoban.level import Level, as_text


def play(text: str, *moves: Action) -> tuple[list[float], str, Game]:
    level = Level.read(text)
    game = Game(level)
    rewards = [game.step(move).reward for move in moves]
    return rewards, as_text(level.fixed, game.cells), game


WALK: Action = "right"


@pytest.mark.parametrize(
    ("before", "moves", "rewards", "after"),
    [
        ("#####\n#@  #\n# $.#\n#####", ["right"], [-0.1], "#####\n# @ #\n# $.#\n#####"),
        ("#####\n#@  #\n# $.#\n#####", ["up", "left"], [-0.1, -0.1], "#####\n#@  #\n# $.#\n#####"),
        ("#####\n#@  #\n#.$ #\n#####", ["down"], [-0.1], "#####\n#   #\n#+$ #\n#####"),
        ("######\n#@$ .#\n######", ["right"], [-0.1], "######\n# @$.#\n######"),
        ("######\n#@$ .#\n######", ["right", "right"], [-0.1, 10.9], "######\n#  @*#\n######"),
        ("######\n#@$$.#\n#.   #\n######", ["right"], [-0.1], "######\n#@$$.#\n#.   #\n######"),
        ("#####\n#.@$#\n#####", ["right"], [-0.1], "#####\n#.@$#\n#####"),
        ("#######\n#@* $.#\n#######", ["right"], [-1.1], "#######\n# +$$.#\n#######"),
        ("#######\n#+*$  #\n#######", ["right"], [-0.1], "#######\n#+*$  #\n#######"),
        ("########\n#+* $  #\n########", ["right"], [-1.1], "########\n#.+$$  #\n########"),
        ("#######\n#@$. $#\n#   . #\n#######", ["right"], [0.9], "#######\n# @* $#\n#   . #\n#######"),
        ("########\n#@*.$  #\n########", ["right"], [-0.1], "########\n# +*$  #\n########"),
    ],
)
def test_a_step(before: str, moves: list[Action], rewards: list[float], after: str) -> None:
    earned, seen, _ = play(before, *moves)
    assert earned == pytest.approx(rewards) and seen == after


def test_a_game_is_over_when_solved_or_after_120_steps() -> None:
    game = Game(Level.read("######\n#@$ .#\n######"))
    outcomes = [game.step("left") for _ in range(MAX_STEPS)]
    assert [each.done for each in outcomes] == [False] * (MAX_STEPS - 1) + [True] and not game.solved
    _, _, solved = play("######\n#@$ .#\n######", "right", "right")
    assert solved.solved
