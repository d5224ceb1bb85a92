r"""LMM-R1's reward for mathematical answers: 0.5 for the strict form, 1 for a right final answer.

Only the final answer is scored, what stands in the last `<answer>...</answer>` of the response: its last box, else its
last `$...$`, else a plain expression or number; an option's letter, or the letters of several in any order, in any
spelling where the gold answer is that. A response without an `<answer>`, as where a prompt asks for `\boxed{}` alone,
is scored by its last box behind the think part. math-verify compares, in processes that are killed when they are late
(`verify_pool.py`).

`compat` equals LMM-R1 to the bit, its defects included:

| defect | compat | by default |
|---|---|---|
| D-3: Phi's marker is no escaped pattern | its form is never valid | the response is known, not looked for |
| D-4: nothing is said | the prompt is scored, worked example and all | 0 |
| D-5: a box in the think part | beats the answer | is not read |
| D-6: a label that cannot be read | everything is right | refused where the row is read |
| D-7: arguments of `verify` | swapped: `x \le 3` is `(-\infty, 3]`, not the other way round | in order |
| D-8: `60` without `$` | wrong | right, as are `12 cm`, `red` and `A.` |

Source: `math_verifier.py` of TideDra/lmm-r1 at f917f18; paper arXiv 2503.07536.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmsearch_trl.core.reward import RewardParts
from mmsearch_trl.rewards.judging import Job
from mmsearch_trl.rewards.responses import Template, upstream_response
from mmsearch_trl.rewards.rule import Rollout, Rule, assistant_turns
from mmsearch_trl.rewards.think_answer import final_answer, strict
from mmsearch_trl.rewards.verify_pool import VerifyPool


FORMAT_WEIGHT = 0.5


class MathRule(Rule):
    """
    Args:
        compat: As LMM-R1, see above.
        template: Under `compat`, of the prompts.
        format_weight: What a valid form is paid.
    """

    def __init__(
        self,
        pool: VerifyPool,
        *,
        compat: bool = False,
        template: Template = "chatml",
        format_weight: float = FORMAT_WEIGHT,
    ) -> None:
        self._pool, self._compat, self._format_weight = pool, compat, format_weight
        self._template: Template = template

    @property
    def name(self) -> str:
        return "math"

    @property
    def needs_answers(self) -> bool:
        return not self._compat

    @property
    def compares_words(self) -> bool:
        return False

    def unusable(self, answers: Sequence[Sequence[str]]) -> dict[int, str]:
        if self._compat:
            return {}
        different = list(dict.fromkeys(tuple(golds) for golds in answers))
        jobs = [Job(task="gold", answer="", golds=golds) for golds in different]
        readable = dict(zip(different, self._pool.verdicts(jobs), strict=True))
        return {
            number: f"the answer {' or '.join(map(repr, golds))[:100]} is no expression, number, option letter or word"
            for number, golds in enumerate(answers)
            if not readable[tuple(golds)]
        }

    def score_batch(self, rollouts: Sequence[Rollout], step: int | None) -> list[RewardParts]:
        answers = [rollout.answers for rollout in rollouts]
        if self._compat:
            return self.score([upstream_response(each.query(), self._template) for each in rollouts], answers)
        return self.score(["".join(assistant_turns(each.messages)[-1:]) for each in rollouts], answers)

    def score(self, responses: Sequence[str], answers: Sequence[Sequence[str]]) -> list[RewardParts]:
        """Score responses, without control tokens, against the accepted answers of each."""
        if self._compat:
            given: list[str | None] = [*responses]
            forms = list(map(strict, responses))
            jobs = [
                Job(task="lmm_r1", answer=response, golds=tuple(golds[:1]) or ("",))
                for response, golds in zip(responses, answers, strict=True)
            ]
        else:
            given = [final_answer(response) for response in responses]
            forms = [strict(response.strip()) for response in responses]
            jobs = [
                Job(task="right", answer=answer or "", golds=tuple(golds))
                for answer, golds in zip(given, answers, strict=True)
            ]
        verdicts = self._pool.verdicts(jobs)
        return [
            RewardParts(
                bool(right) + self._format_weight * form, float(bool(right)), float(form), None, answer, right is None
            )
            for answer, form, right in zip(given, forms, verdicts, strict=True)
        ]

    def settings(self) -> Mapping[str, Any]:
        compat = {"compat": "lmm_r1"} if self._compat else {}
        return {"rule": self.name, "format_weight": self._format_weight, **compat}

    def close(self) -> None:
        self._pool.close()
