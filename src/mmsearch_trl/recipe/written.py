"""A recipe as it is written: its keys are known, and its own sections are built; nothing of it was looked for on disk.

This costs half a second, for neither PyTorch nor TRL is imported: of the many keys that they declare, names and simple
types are read from their sources (`declared.py`), and `recipe.py` builds them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.redaction import REDACTED
from mmsearch_trl.core.versions import check_versions
from mmsearch_trl.data.config import DataConfig
from mmsearch_trl.recipe.declared import declared_fields
from mmsearch_trl.recipe.layers import Layers
from mmsearch_trl.recipe.model_keys import check_model_keys
from mmsearch_trl.recipe.validation import Where, build, convert, unknown_key
from mmsearch_trl.rewards.direct import DirectRewardConfig
from mmsearch_trl.rewards.mmsearch import RewardConfig
from mmsearch_trl.rewards.search_r1 import SearchR1RewardConfig
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.upstream_limits import UpstreamLimits
from mmsearch_trl.search.config import SearchConfig
from mmsearch_trl.trainer.critic_config import CriticConfig
from mmsearch_trl.trainer.estimator_config import EstimatorConfig
from mmsearch_trl.trainer.options import check_choices


Kind = Literal["grpo", "sft"]

_ARGUMENTS = ("transformers.training_args:TrainingArguments", "trl.trainer.base_config:_BaseConfig")
MODEL_KEYS = ("trl.trainer.model_config:ModelConfig", "mmsearch_trl.recipe.model_config:RecipeModelConfig")
TRAINER_KEYS: Mapping[Kind, tuple[str, ...]] = {
    "grpo": (*_ARGUMENTS, "trl.trainer.grpo_config:GRPOConfig", "mmsearch_trl.trainer.config:MMSearchGRPOConfig"),
    "sft": (*_ARGUMENTS, "trl.trainer.sft_config:SFTConfig", "mmsearch_trl.trainer.sft:MMSearchSFTConfig"),
}
"""Where keys are declared: the classes of a section, bases first."""

_LIMITS: dict[str, type[Limits]] = {"mmsearch_r1_upstream": UpstreamLimits}
"""Of protocols with limits of their own."""
_REWARDS: dict[str, type] = {
    "mmsearch_r1": RewardConfig,
    "mmsearch_r1_upstream": RewardConfig,
    "search_r1": SearchR1RewardConfig,
    "direct": DirectRewardConfig,
}
ON_A_CPU: Mapping[str, Any] = {"bf16": False, "fp16": False, "tf32": False, "use_cpu": True}
"""Keys with which a recipe for a GPU is carried out, or looked at, without one."""

RESUME = "resume_from_checkpoint"
"""True is the newest checkpoint to `train`, and no value of the field as transformers declares it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenRecipe:
    """The keys of all layers, and of the sections those that are ours alone.

    Attributes:
        values: All keys, with those of the recipes that it extends and overrides.
        model: Of `values`, the keys of `RecipeModelConfig`.
        trainer: Of `values`, those of the trainer's configuration.
    """

    path: Path
    kind: Kind
    layers: Layers = field(repr=False)
    values: dict[str, Any]
    model: dict[str, Any]
    trainer: dict[str, Any]
    data: DataConfig
    search: SearchConfig
    rollout: Limits
    reward: RewardConfig | SearchR1RewardConfig | DirectRewardConfig

    def where(self, key: str) -> str:
        """Where a dotted key was written: a file, or the command line."""
        return self.layers.place(key) or str(self.path)


def read_written(
    path: str | Path, overrides: Mapping[str, Any] | None = None, *, kind: Kind = "grpo"
) -> WrittenRecipe:
    """Read a recipe's file, those that it extends, and overrides; the arguments are those of `load_recipe`.

    Raises:
        UserError: a file is missing or is no mapping, a key is unknown, or a value is of another type.
        VersionError: an installed library is out of range.
    """
    check_versions()
    layers = Layers()
    layers.add_file(Path(path))
    layers.add_keys(overrides or {})
    values = layers.values
    if (key := _redacted_key(values)) is not None:
        raise UserError(
            f"{layers.place(key) or path}: `{key}` holds {REDACTED}, for a secret is not written down: give it again, "
            f"as --{key} VALUE"
        )

    def where(key: str) -> str:
        return layers.place(key) or str(path)

    model, trainer = declared_fields(*MODEL_KEYS), declared_fields(*TRAINER_KEYS[kind])
    data = {each.name for each in fields(DataConfig)}
    protocol = str(values.get("protocol", "mmsearch_r1"))
    # A protocol that is not known is refused by `DataConfig`, with the ones that are.
    sections = {
        "search": SearchConfig,
        "rollout": _LIMITS.get(protocol, Limits),
        "reward": _REWARDS.get(protocol, RewardConfig),
    }
    known = {"tools"}.union(data, model, trainer, sections if kind == "grpo" else ())
    for key in values:
        if key not in known:
            raise unknown_key(key, sorted(known), where)
    _check_reward_keys(values.get("reward"), protocol, where)
    written = values | ({"rollout": _of_one_turn(values.get("rollout"))} if protocol == "direct" else {})
    for key, hint in (model | trainer).items():
        if key in values and not (key == RESUME and isinstance(values[key], bool)):
            convert(values[key], hint, key, where)
    if kind == "grpo":
        try:
            check_choices(values)
        except UserError as error:
            raise UserError(f"{where(str(error).partition(' ')[0])}: {error}") from error
        for name, cls in (("estimator", EstimatorConfig), ("critic", CriticConfig)):
            if values.get(name) is not None:
                _section(cls, values[name], name, where)
    check_model_keys(values, where)
    return WrittenRecipe(
        path=Path(path),
        kind=kind,
        layers=layers,
        values=values,
        model={key: values[key] for key in values if key in model},
        trainer={key: values[key] for key in values if key in trainer},
        data=build(DataConfig, {key: values[key] for key in values if key in data}, where),
        **{name: _section(cls, written.get(name), name, where) for name, cls in sections.items()},
    )


def _of_one_turn(rollout: Any) -> Any:
    """The limits of a rollout that is one turn: its two lengths are the same, and one of them need not be given."""
    if not isinstance(rollout, dict | NoneType):
        return rollout
    given, lengths = {"max_turns": 1} | (rollout or {}), ("max_turn_tokens", "max_response_tokens")
    for key, other in (lengths, lengths[::-1]):
        if other in given:
            given.setdefault(key, given[other])
    return given


def _check_reward_keys(values: Any, protocol: str, where: Where) -> None:
    """Say of a key that the reward of another protocol has whose it is."""
    keys = {name: {each.name for each in fields(cls)} for name, cls in _REWARDS.items()}
    if protocol not in keys:
        return
    for key in values if isinstance(values, dict) else ():
        others = [name for name, known in keys.items() if key in known]
        if key not in keys[protocol] and others:
            raise UserError(
                f"{where(f'reward.{key}')}: reward.{key} is a key of protocol {others[0]}, and protocol is {protocol}"
            )


def _redacted_key(values: Any, key: str = "") -> str | None:
    """The dotted key of a value that lacks its secret, if there is one."""
    if isinstance(values, dict):
        found = (_redacted_key(value, f"{key}.{name}" if key else str(name)) for name, value in values.items())
        return next((dotted for dotted in found if dotted is not None), None)
    texts = values if isinstance(values, list) else [values]
    return key if any(isinstance(text, str) and REDACTED in text for text in texts) else None


def _section(cls: type, values: Any, name: str, where: Where) -> Any:
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{where(name)}: `{name}` must be a mapping of keys to values, got {values!r}")
    return build(cls, values or {}, where, f"{name}.")
