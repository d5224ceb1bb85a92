"""The `reward:` section of a recipe with `protocol: direct`: which rule scores the one turn, and how."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.worker import LONGEST_JOB_SECONDS
from mmsearch_trl.rewards import math, r1_v
from mmsearch_trl.rewards.answer import AnswerRule
from mmsearch_trl.rewards.checks import check_choice, check_range
from mmsearch_trl.rewards.matching import RewardMode
from mmsearch_trl.rewards.responses import Template
from mmsearch_trl.rewards.rule import Rule
from mmsearch_trl.rewards.sokoban import SokobanRule
from mmsearch_trl.rewards.sources import RewardSources
from mmsearch_trl.rewards.verify_pool import VerifyPool, check_installed


DirectRule = Literal["math", "r1_v", "answer", "sokoban", "none"]
Compat = Literal["lmm_r1", "r1_v"]

_JUDGED = ("math", "r1_v")


@dataclass(frozen=True, kw_only=True)
class DirectRewardConfig(RewardSources):
    """
    Raises:
        UserError: A value is out of range, or means nothing under the rule.
    """

    rule: DirectRule = field(
        default="math",
        metadata={
            "help": "math: LMM-R1's, form and final answer, compared by math-verify. r1_v: R1-V's. answer: the words "
            "of the answer alone. sokoban: LMM-R1's, moves played in the row's `level`; rows need no answer. none: "
            "only what function, models and remote say; rows need no answer."
        },
    )
    compat: Compat | None = field(
        default=None,
        metadata={
            "help": "lmm_r1 (rule math), r1_v (rule r1_v): score as that project does, to the bit, its defects "
            "included: the think part is read, and under lmm_r1 a gold answer that cannot be read makes all right."
        },
    )
    template: Template = field(
        default="chatml",
        metadata={
            "help": "compat lmm_r1: how prompts mark the assistant's turn, behind which it looks for an answer."
        },
    )
    format_weight: float | None = field(
        default=None,
        metadata={
            "help": "Rules math and r1_v: what a valid form is paid. Default: 0.5 of math, 1.0 of r1_v. [0, 10]"
        },
    )
    verify_timeout_s: float = field(
        default=5.0,
        metadata={
            "help": "Rules math and r1_v: seconds after which judging an answer is given up, its process killed and "
            "the answer counted as wrong (metric reward/given_up). At most 60."
        },
    )
    reward_mode: RewardMode = field(
        default="EM",
        metadata={
            "help": "Rule answer: EM: the answer equals a gold one. SubEM: it contains one. Both after normalisation."
        },
    )

    def __post_init__(self) -> None:
        RewardSources.__post_init__(self)
        check_choice("rule", self.rule, get_args(DirectRule))
        check_choice("template", self.template, get_args(Template))
        check_choice("reward_mode", self.reward_mode, get_args(RewardMode))
        check_range("verify_timeout_s", self.verify_timeout_s, 0.01, LONGEST_JOB_SECONDS)
        if self.compat is not None:
            check_choice("compat", self.compat, get_args(Compat))
        if self.format_weight is not None:
            check_range("format_weight", self.format_weight, 0, 10)
        for problem in self._meaningless():
            raise UserError(f"reward.{problem}. Leave it out")
        if self.rule == "none" and not (self.function or self.models or self.remote):
            raise UserError("reward.rule is none, and neither function nor models nor remote says what else is paid")

    @cached_property  # a pool of its own, once
    def scored_by(self) -> Rule | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """
        Raises:
            UserError: math-verify is not installed.
        """
        if self.rule in _JUDGED:
            check_installed()
            pool = VerifyPool(seconds=self.verify_timeout_s)
            compat, weight = self.compat is not None, self.format_weight
            if self.rule == "r1_v":
                return r1_v.R1VRule(
                    pool, compat=compat, format_weight=r1_v.FORMAT_WEIGHT if weight is None else weight
                )
            weight = math.FORMAT_WEIGHT if weight is None else weight
            return math.MathRule(pool, compat=compat, template=self.template, format_weight=weight)
        if self.rule == "sokoban":
            return SokobanRule()
        return AnswerRule(self.reward_mode) if self.rule == "answer" else None

    def _meaningless(self) -> Iterator[str]:
        """What is set and does nothing."""
        if self.compat is not None and self.compat != {"math": "lmm_r1", "r1_v": "r1_v"}.get(self.rule):
            yield f"compat: {self.compat} has no meaning under rule {self.rule}"
        if self.template != "chatml" and self.compat != "lmm_r1":
            yield "template needs compat: lmm_r1; otherwise the response is known, and not looked for"
        if self.rule not in _JUDGED and self.format_weight is not None:
            yield f"format_weight has no meaning under rule {self.rule}"
        if self.rule not in _JUDGED and self.verify_timeout_s != 5.0:
            yield f"verify_timeout_s has no meaning under rule {self.rule}"
        if self.rule != "answer" and self.reward_mode != "EM":
            yield f"reward_mode has no meaning under rule {self.rule}"
