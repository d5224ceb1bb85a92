"""The section `estimator:` of a recipe: how rewards become advantages, and what the KL term is spent on."""

from dataclasses import dataclass, field
from typing import Literal

from mmsearch_trl.core.errors import UserError


Name = Literal["group_norm", "rloo", "reinforce", "reinforce_baseline", "dr_grpo", "gae"]
KLForm = Literal["k1", "k2", "k3"]
Normalization = Literal["mean_std", "mean", "none"]

ALONE: frozenset[str] = frozenset({"reinforce", "gae"})
"""Estimators that compare a rollout with no others of its prompt: one rollout of a prompt is enough."""

SCALED: frozenset[str] = frozenset({"group_norm", "dr_grpo"})
"""Estimators that say themselves what advantages are divided by: these are not normalised over the batch."""

CLIP_OF_LMM_R1 = (-10.0, 10.0)
EPS_OF_LMM_R1 = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class KLConfig:
    """The KL term against the reference policy, with d = log p - log p_ref of a sampled token.

    Raises:
        UserError: keys contradict each other.
    """

    coef: float = field(
        default=0.0, metadata={"help": "Weight of the KL term, at the start where it follows a target; 0: none."}
    )
    form: KLForm = field(
        default="k1", metadata={"help": "Estimate of a token's KL: k1 is d, k2 is d^2 / 2, k3 is exp(-d) + d - 1."}
    )
    place: Literal["reward", "loss"] = field(
        default="reward",
        metadata={
            "help": "`reward`: every sampled token pays for its KL before returns are taken; `loss`: a term of the "
            "loss beside the policy's, as TRL's `beta` (k2 or k3)."
        },
    )
    target: float | None = field(
        default=None, metadata={"help": "Mean KL of a token that the coefficient follows, batch by batch."}
    )
    horizon: int = field(
        default=10_000,
        metadata={"help": "Trajectories over which the coefficient changes by the relative error, of at most 0.2."},
    )

    def __post_init__(self) -> None:
        if not 0 <= self.coef < float("inf"):
            raise UserError(f"estimator.kl.coef must be 0 or more, got {self.coef}")
        if self.place == "loss" and self.form == "k1":
            raise UserError(
                "estimator.kl.form k1 has a gradient of mean 0 in the loss, so that it holds nothing: use k2 or k3, "
                "or estimator.kl.place reward"
            )
        if self.target is not None and not self.target > 0:
            raise UserError(f"estimator.kl.target must be above 0, got {self.target}")
        if self.target is not None and self.coef == 0:
            raise UserError("estimator.kl.target scales estimator.kl.coef, and that is 0: set it to more")
        if self.horizon < 1:
            raise UserError(f"estimator.kl.horizon must be at least 1, got {self.horizon}")
        if self.horizon != 10_000 and self.target is None:
            raise UserError("estimator.kl.horizon needs estimator.kl.target")


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorConfig:
    """How the rewards of a batch become the advantages of its sampled tokens (`estimators.py`).

    Raises:
        UserError: keys contradict each other.
    """

    name: Name = field(
        metadata={
            "help": "`group_norm`: GRPO's, less the mean of the prompt's rollouts and over their deviation; "
            "`dr_grpo`: less the mean alone; `rloo`: less the mean of the others; `reinforce_baseline`: less the mean "
            "(REINFORCE++-baseline); `reinforce`: the reward as it is (REINFORCE++), also with `num_generations: 1`; "
            "`gae`: what tokens did better than a critic expected (PPO; the section `critic:`), likewise. The last "
            "four are then normalised over the batch."
        }
    )
    compat: Literal["lmm_r1"] | None = field(
        default=None,
        metadata={
            "help": "`lmm_r1`: as LMM-R1 computes it: 1e-9 beside a group's deviation, rewards clipped to [-10, 10] "
            "unless `reward_clip` says otherwise, `dr_grpo` under `loss_type: bnpo` instead of the paper's "
            "`dr_grpo`, and no importance ratio on a KL term in the loss (`use_bias_correction_kl: false`)."
        },
    )
    reward_clip: tuple[float, float] | None = field(
        default=None, metadata={"help": "Least and most that a reward counts, after the baseline; default: any."}
    )
    gamma: float = field(
        default=1.0, metadata={"help": "Discount from one sampled token to the next, for `reinforce` and `gae`."}
    )
    lam: float = field(
        default=1.0,
        metadata={"help": "`gae`: 1 for whole returns less values, 0 for the surprise of the next token alone."},
    )
    normalize: Normalization | None = field(
        default=None,
        metadata={
            "help": "Over all sampled tokens of the batch: `mean_std` (the default), `mean` or `none`. Not for "
            "`group_norm` and `dr_grpo`."
        },
    )
    kl: KLConfig = field(default_factory=KLConfig, metadata={"help": "The KL term: the keys below."})

    def __post_init__(self) -> None:
        clip = self.reward_clip
        if clip is not None and not clip[0] < clip[1]:
            raise UserError(f"estimator.reward_clip is [least, most], got {list(clip)}")
        if not 0 < self.gamma <= 1:
            raise UserError(f"estimator.gamma must be above 0 and up to 1, got {self.gamma}")
        if self.gamma != 1 and self.name not in ALONE:
            raise UserError(
                f"estimator.gamma is 1 for {self.name}, whose baseline is of whole rollouts: leave it out "
                f"(got {self.gamma})"
            )
        if not 0 <= self.lam <= 1:
            raise UserError(f"estimator.lam must be from 0 to 1, got {self.lam}")
        if self.lam != 1 and self.name != "gae":
            raise UserError(f"estimator.lam is for gae: leave it out (name: {self.name}, got {self.lam})")
        if self.normalize is not None and self.name in SCALED:
            raise UserError(
                f"estimator.normalize is not for {self.name}, whose advantages are scaled as its name says: "
                f"leave it out (got {self.normalize!r})"
            )

    @property
    def clip(self) -> tuple[float, float] | None:
        return CLIP_OF_LMM_R1 if self.reward_clip is None and self.compat == "lmm_r1" else self.reward_clip

    @property
    def normalization(self) -> Normalization:
        return "none" if self.name in SCALED else self.normalize or "mean_std"
