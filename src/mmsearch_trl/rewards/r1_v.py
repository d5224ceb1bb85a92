"""R1-V's reward: 1 for a right answer and 1 for the form.

The answer is right where math-verify says so (`math.py`), or where it is the very text of the gold one; a gold answer
may stand in `<answer>` tags. `compat` reads as R1-V does: math-verify looks at the whole response, the think part
included, with the arguments of `verify` swapped; then the first `<answer>` on one line, or else the whole response, is
compared as a text; and a blank around the response spoils its form.

Source: `grpo.py` of Deep-Agent/R1-V.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmsearch_trl.core.reward import RewardParts
from mmsearch_trl.core.tags import enclosed, last_enclosed
from mmsearch_trl.rewards.judging import Job
from mmsearch_trl.rewards.rule import Rollout, Rule, assistant_turns
from mmsearch_trl.rewards.think_answer import final_answer, lenient
from mmsearch_trl.rewards.verify_pool import VerifyPool


FORMAT_WEIGHT = 1.0


class R1VRule(Rule):
    """
    Args:
        compat: As R1-V, see above.
        format_weight: What a valid form is paid.
    """

    def __init__(self, pool: VerifyPool, *, compat: bool = False, format_weight: float = FORMAT_WEIGHT) -> None:
        self._pool, self._compat, self._format_weight = pool, compat, format_weight

    @property
    def name(self) -> str:
        return "r1_v"

    @property
    def compares_words(self) -> bool:
        return False

    def score_batch(self, rollouts: Sequence[Rollout], step: int | None) -> list[RewardParts]:
        responses = ["".join(assistant_turns(rollout.messages)[-1:]) for rollout in rollouts]
        golds = [tuple(rollout.answers) for rollout in rollouts]
        if self._compat:
            answers: list[str | None] = [_upstream_answer(response) for response in responses]
            same = [_upstream_answer(gold) == answer for answer, (gold, *_) in zip(answers, golds, strict=True)]
            jobs = [Job(task="r1_v", answer=said, golds=gold[:1]) for said, gold in zip(responses, golds, strict=True)]
        else:
            golds = [tuple(_unwrapped(gold) for gold in row) for row in golds]
            answers = [final_answer(response) for response in responses]
            same = [answer in row for answer, row in zip(answers, golds, strict=True)]
            jobs = [Job(task="right", answer=said or "", golds=row) for said, row in zip(answers, golds, strict=True)]
            responses = [response.strip() for response in responses]
        asked = [number for number, equal in enumerate(same) if not equal]
        verdicts = dict(zip(asked, self._pool.verdicts([jobs[number] for number in asked]), strict=True))
        return [
            self._parts(response, answer, verdicts.get(number, True))
            for number, (response, answer) in enumerate(zip(responses, answers, strict=True))
        ]

    def settings(self) -> Mapping[str, Any]:
        compat = {"compat": "r1_v"} if self._compat else {}
        return {"rule": self.name, "format_weight": self._format_weight, **compat}

    def close(self) -> None:
        self._pool.close()

    def _parts(self, response: str, answer: str | None, right: bool | None) -> RewardParts:
        form, accuracy = float(lenient(response)), float(bool(right))
        return RewardParts(accuracy + self._format_weight * form, accuracy, form, None, answer, right is None)


def _unwrapped(gold: str) -> str:
    inner = last_enclosed(gold, "answer")
    return gold.strip() if inner is None else inner


def _upstream_answer(text: str) -> str:
    of_lines = (answer for line in text.split("\n") for answer in enclosed(line, "answer"))
    return next(of_lines, text).strip()
