"""The shaped reward of LMM-R1 against one that is written out plainly, and outputs that nobody expects."""

import json
import re
import time
from typing import Any

import pytest

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.rewards.rule_reward import RuleReward
from mmsearch_trl.rewards.sokoban import SokobanRule, repeats, score
from mmsearch_trl.sokoban.level import Level
from mmsearch_trl.sokoban.search import solve


LEVEL = "#######\n#     #\n# $.  #\n#@$ . #\n#     #\n#######"
STEPS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


def plain_game(level: str, moves: list[str]) -> tuple[float, bool]:
    """What the best beginning earned and whether the level was solved: sets of places, one rule a line."""
    places = {(r, c): mark for r, line in enumerate(level.split("\n")) for c, mark in enumerate(line)}
    walls = {place for place, mark in places.items() if mark == "#"}
    targets = {place for place, mark in places.items() if mark in ".*+"}
    boxes = {place for place, mark in places.items() if mark in "$*"}
    player = next(place for place, mark in places.items() if mark in "@+")
    total = best = 0.0
    for move in moves[:50]:
        ahead = (player[0] + STEPS[move][0], player[1] + STEPS[move][1])
        beyond = (ahead[0] + STEPS[move][0], ahead[1] + STEPS[move][1])
        before = len(boxes & targets)
        if ahead in boxes and beyond not in walls | boxes:
            boxes = boxes - {ahead} | {beyond}
        if ahead not in walls | boxes:
            player = ahead
        total += -0.1 + (len(boxes & targets) - before) + (10 if boxes == targets else 0)
        best = max(best, total)
        if boxes == targets:
            return best, True
    return best, False


def plain(turn: str, level: str) -> float:
    if any(len(re.findall(tag, turn)) != 1 for tag in ("<think>", "</think>", "<answer>", "</answer>")):
        return 0.0
    moves = [move.strip().lower() for move in turn.split("<answer>")[1].split("</answer>")[0].split(",")]
    if any(move not in STEPS for move in moves):
        return 0.0
    count = len(moves)
    shaped = 0.05 * count if count < 20 else 1 - ((count - 20) / 30) ** 2 * 0.2
    runs = [
        all(moves[at + i] == moves[at + i % k] for i in range(8 * k))
        for k in range(1, 6)
        for at in range(count - 8 * k + 1)
    ]
    if any(runs):
        shaped = min(0.0, shaped - 0.2)
    words = [word for word in turn.split("<think>")[1].split("</think>")[0].strip().split(" ") if len(word) > 1]
    return 0.5 + plain_game(level, moves)[0] + shaped + 0.001 * min(len(words), 200)


def said(moves: str, think: str = "I push both boxes") -> str:
    return f"<think>{think}</think><answer>{moves}</answer>"


def many(pattern: str, times: int) -> str:
    return ", ".join([pattern] * times)


TURNS = {
    "nothing": "",
    "no tags": "left, right",
    "solved": said("right, left, up, left, up, right, right, down"),
    "solved, and on": said("right, right, right, right, up, left, down, left"),
    "one box": said("right"),
    "one box and off again": said("right, right, right"),
    "a wall": said("left"),
    "capitals and blanks": said("  RIGHT ,\n Up,right "),
    "an unknown move": said("right, jump"),
    "a move too few": said("right,, up"),
    "a comma at the end": said("right, up,"),
    "an empty answer": said(""),
    "two answers": said("right") + "<answer>left</answer>",
    "a tag in the thoughts": said("right", think="so <answer> it is"),
    "no end of thoughts": "<think>hm<answer>right</answer>",
    "text around": f"Well. {said('right')} Done.",
    "thoughts behind": "<answer>right</answer><think>that was it</think>",
    "tags the wrong way round": "</answer>x<answer>right</think>y<think>some words here",
    "one word a letter": said("up", think="a b c dd e"),
    "no thoughts": said("up", think=""),
    "199 words": said("up", think=" ".join(["go"] * 199)),
    "1,000 words": said("up", think=" ".join(["go"] * 1000)),
    "words in lines": said("up", think="one\ntwo  three\tfour five"),
    "19 moves": said(many("up, down, left", 6) + ", up"),
    "20 moves": said(many("up, left, down, left, up", 4)),
    "21 moves": said(many("up, left, down, left, up", 4) + ", down"),
    "50 moves": said(many("up, left, down, left, up, up, left, down, down, up", 5)),
    "51 moves": said(many("up, left, down, left, up, up, left, down, down, up", 5) + ", up"),
    "solved by the 51st": said(many("left", 6) + ", " + many("up, down", 22) + ", right"),
    "500 moves": said(many("up, left, down, left, up, up, left, down, down, up", 50)),
    "seven alike": said(many("up", 7)),
    "eight alike": said(many("up", 8)),
    "a pair seven times": said(many("up, down", 7) + ", up"),
    "a pair eight times": said(many("up, down", 8)),
    "three eight times": said("left, " + many("up, down, left", 8)),
    "five eight times": said(many("up, down, left, up, right", 8)),
    "six eight times": said(many("up, down, left, up, right, right", 8)),
    "other letters": said("right, \uff55\uff50"),
}


@pytest.mark.parametrize("name", TURNS)
@pytest.mark.parametrize("level", [LEVEL, "#########\n#@ $  . #\n#########", "######\n#@*  #\n# $. #\n######"])
def test_the_reward_is_the_plain_one(name: str, level: str) -> None:
    parts = score(TURNS[name], Level.read(level))
    assert parts.reward == pytest.approx(plain(TURNS[name], level), abs=1e-12)
    assert parts.format == float(parts.answer is not None) and parts.searches is None


def test_a_level_that_is_solved_is_right() -> None:
    """A step without a box, 0.9 for the first box, 10.9 for the last; 0.5; 0.05 a move; 0.001 a word."""
    parts = score(said("right, right", think="two whole words"), Level.read("######\n#@$ .#\n######"))
    assert parts.reward == pytest.approx(-0.1 + 10.9 + 0.5 + 0.1 + 0.003) and parts.accuracy == 1.0
    moves = solve(Level.read(LEVEL), most_moves=50)
    assert moves is not None
    parts = score(said(", ".join(moves)), Level.read(LEVEL))
    steps = -0.1 * (len(moves) - 2) + 0.9 + 10.9
    assert parts.reward == pytest.approx(steps + 0.5 + 0.05 * len(moves) + 0.003) and parts.accuracy == 1.0


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("times", [7, 8])
def test_repeats_of_up_to_five_moves_count_from_the_eighth_time(length: int, times: int) -> None:
    pattern = ["up", "left", "left", "down", "right", "right"][:length]
    moves = [*pattern * times, *pattern[: length - 1]]
    assert repeats(moves) is (times == 8 and length <= 5)  # pyright: ignore[reportArgumentType]


def test_no_output_takes_long() -> None:
    level, started = Level.read(LEVEL), time.process_time()
    for turn in (
        said(many("up", 300_000)),
        said(many("up, left, down, left, up, up, down", 40_000)),
        "<think>" * 300_000,
        said(",".join(" " * 400 for _ in range(2_000))),
        said("left", think="x " * 600_000),
        "\0\ud800" * 100_000,
    ):
        score(turn, level)
    assert time.process_time() - started < 5


def test_rows_bring_their_level_and_need_no_answer() -> None:
    reward = RuleReward(SokobanRule())
    levels = [LEVEL, "#####\n#@$.#\n#####"]
    columns: dict[str, Any] = {"id": ["a", "b"], "extra": [json.dumps({"level": level}) for level in levels]}
    turns = [said("right"), said("right")]
    assert reward(turns, [[], []], **columns) == pytest.approx([plain(turns[0], LEVEL), 11.453])


@pytest.mark.parametrize("extra", [{}, {"level": "####"}, {"level": 7}])
def test_a_row_without_a_level_is_named(extra: dict[str, object]) -> None:
    with pytest.raises(UserError, match="row 'mine': `level`: a Sokoban level"):
        RuleReward(SokobanRule())([said("up")], [[]], id=["mine"], extra=[json.dumps(extra)])
