"""LMM-R1's reward for a level of Sokoban that is played in one turn, all moves at once.

A turn is paid nothing unless it holds `<think>`, `</think>`, `<answer>` and `</answer>` exactly once each, and the
answer is moves alone: `left`, `right`, `up`, `down`, with commas between them. Otherwise it is paid the sum of

* 0.5 for the form;
* what the game gave for the best of the answer's beginnings, at least 0, of at most 50 moves (`sokoban/game.py`);
* 0.05 for every move below 20; from there on 1, less a fifth of the square of the thirtieths beyond 20; at most 0, and
  0.2 less, where up to five moves are repeated more than seven times running;
* 0.001 for every word of the think part that is longer than a letter, up to 200.

The row holds the level (`level`, `sokoban/level.py`), and needs no answer. Nothing of the turn can make scoring take
long: it is looked through once.

Source: `sokoban_verifier.py` of TideDra/lmm-r1 at f917f18. Where that loses the targets below boxes and player, these
are kept; where a worker that dies leaves it waiting for ever (D-14), there is no worker.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, cast, get_args

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.reward import RewardParts
from mmsearch_trl.rewards.rule import Rollout, Rule, assistant_turns
from mmsearch_trl.sokoban.game import MOST_MOVES, Action, Game
from mmsearch_trl.sokoban.level import Level


FORM = 0.5
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_ACTIONS = frozenset(get_args(Action))
_LONGEST_PATTERN, _MOST_REPEATS = 5, 7
_ENOUGH_MOVES, _ENOUGH_WORDS = 20, 200
_WON = 3.0
"""Only the step that solves a level is paid more."""


class SokobanRule(Rule):
    """The reward above."""

    @property
    def name(self) -> str:
        return "sokoban"

    @property
    def needs_answers(self) -> bool:
        return False

    @property
    def compares_words(self) -> bool:
        return False

    def score_batch(self, rollouts: Sequence[Rollout], step: int | None) -> list[RewardParts]:
        """
        Raises:
            UserError: a row holds no level.
        """
        return [score("".join(assistant_turns(each.messages)[-1:]), _level_of(each)) for each in rollouts]

    def check_columns(self, columns: Mapping[str, Any]) -> None:
        """
        Raises:
            UserError: there is no level among them.
        """
        try:
            Level.read(columns.get("level"))
        except UserError as error:
            raise UserError(f"`level`: {error}") from error


def _level_of(rollout: Rollout) -> Level:
    try:
        return Level.read(rollout.extra().get("level"))
    except UserError as error:  # rows that were not read by a recipe
        raise UserError(f"{rollout.row}: `level`: {error}") from error


def score(turn: str, level: Level) -> RewardParts:
    """Score a turn, without control tokens."""
    moves = moves_of(turn)
    if moves is None:
        return RewardParts(0.0, 0.0, 0.0, None, None)
    best, solved = play(moves, level)
    words = _between(turn, "<think>", "</think>").strip().split(" ")
    reward = best + FORM + shaped(moves) + 0.001 * min(sum(len(word) > 1 for word in words), _ENOUGH_WORDS)
    return RewardParts(reward, float(solved), 1.0, None, ", ".join(moves[:MOST_MOVES]))


def moves_of(turn: str) -> list[Action] | None:
    """The moves of the answer; None where the form is not valid."""
    if any(turn.count(tag) != 1 for tag in _TAGS):
        return None
    moves = [word.strip().lower() for word in _between(turn, "<answer>", "</answer>").split(",")]
    return cast(list[Action], moves) if _ACTIONS.issuperset(moves) else None


def play(moves: Sequence[Action], level: Level) -> tuple[float, bool]:
    """What the best beginning earned, at least 0, and whether the level was solved."""
    game, total, best = Game(level), 0.0, 0.0
    for move in islice(moves, MOST_MOVES):
        outcome = game.step(move)
        total += outcome.reward
        best = max(best, total)
        if outcome.done or outcome.reward > _WON:
            break
    return best, game.solved


def shaped(moves: Sequence[Action]) -> float:
    """What is paid for the number of moves."""
    count = len(moves)
    paid = 0.05 * count if count < _ENOUGH_MOVES else 1.0 - ((count - _ENOUGH_MOVES) / 30) ** 2 * 0.2
    return min(0.0, paid - 0.2) if repeats(moves) else paid


def repeats(moves: Sequence[Action]) -> bool:
    """Whether up to five moves follow one another more than seven times, in the same order."""
    for length in range(1, _LONGEST_PATTERN + 1):
        same = 0
        for earlier, later in zip(moves, islice(moves, length, None), strict=False):
            same = same + 1 if earlier == later else 0
            if same == length * _MOST_REPEATS:
                return True
    return False


def _between(text: str, start: str, end: str) -> str:
    """What follows the one `start`, up to the end tag where one comes behind it."""
    return text.partition(start)[2].partition(end)[0]
