"""What a run may be rewarded by beside its protocol's rule: functions, reward models, servers, its length."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.rewards.overlong import OverlongConfig
from mmsearch_trl.rewards.remote import RemoteConfig
from mmsearch_trl.rewards.rule import Rule


@dataclass(frozen=True, kw_only=True)
class RewardSources(ABC):
    """Keys that every `reward:` section has. Each reward is a number of its own, and their sum is trained on.

    Raises:
        UserError: something is named twice.
    """

    function: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Functions of yours, as my_file.py:name or package.module:name, in OpenRLHF's signature (queries, "
            "prompts, labels) or TRL's (completions and what else it names), plain or async."
        },
    )
    models: tuple[str, ...] = field(
        default=(),
        metadata={"help": "Reward models by folder or Hub name: sequence classifiers, of whose first logit is paid."},
    )
    remote: RemoteConfig | None = field(
        default=None, metadata={"help": "Servers that answer OpenRLHF's POST /get_reward; its keys are below."}
    )
    overlong: OverlongConfig | None = field(
        default=None, metadata={"help": "A soft penalty on long rollouts, as DAPO's; its keys are below."}
    )

    def __post_init__(self) -> None:
        for key in ("function", "models"):
            if twice := [name for name in getattr(self, key) if getattr(self, key).count(name) > 1]:
                raise UserError(f"reward.{key} names {twice[0]} twice: give it a weight instead (reward_weights)")

    @property
    @abstractmethod
    def scored_by(self) -> Rule | None:
        """The rule; None where there is none."""

    def names(self) -> list[str]:
        """The rewards in the order in which `reward_weights` weighs them: rule, functions, models, servers, length."""
        rule = self.scored_by
        own = [] if rule is None else [f"the rule {rule.name}"]
        others = [name for name in ("remote", "overlong") if getattr(self, name) is not None]
        return [*own, *self.function, *self.models, *others]
