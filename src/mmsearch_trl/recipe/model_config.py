"""The model keys of a recipe: TRL's, and those that it lacks."""

import re
from dataclasses import dataclass, field
from typing import Literal

from peft import LoraConfig
from trl import ModelConfig, get_peft_config

from mmsearch_trl.core.errors import UserError


_NAME = re.compile(r"[\w.]+")
"""A module's, or the end of one; anything else is a pattern for whole names."""


@dataclass
class RecipeModelConfig(ModelConfig):
    """`trl.ModelConfig` with the modules that LoRA leaves out, and with training that starts from an adapter."""

    lora_exclude_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Modules that get no adapter though lora_target_modules matches them: names, with all that is "
            "within them, such as [visual, down_proj], or patterns for whole names."
        },
    )
    from_adapter: Literal["continue", "merge"] | None = field(
        default=None,
        metadata={
            "help": "Where model_name_or_path is a LoRA adapter: continue trains that adapter on (with use_peft; the "
            "reference of the KL term is the adapter as it was); merge merges it into its base model, writes that to "
            "<output_dir>/merged_start and trains it, whole or with a new adapter (it is the reference, too)."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # TRL takes a list of one for a pattern of whole names, under which [q_proj] is no module of any model.
        targets: str | list[str] | None = self.lora_target_modules
        if isinstance(targets, str) and _NAME.fullmatch(targets):
            self.lora_target_modules = [targets]


def adapter_config(model: ModelConfig) -> LoraConfig | None:
    """The adapter that a recipe asks for; None where all weights are trained."""
    adapter = get_peft_config(model)
    targets = model.lora_target_modules
    if adapter is not None and isinstance(targets, list) and not all(map(_NAME.fullmatch, targets)):
        adapter.target_modules = "|".join(map(targeting, targets))  # pyright: ignore[reportAttributeAccessIssue]
    excluded: list[str] | None = getattr(model, "lora_exclude_modules", None)
    if adapter is not None and excluded:
        adapter.exclude_modules = "|".join(map(excluding, excluded))  # pyright: ignore[reportAttributeAccessIssue]
    return adapter  # pyright: ignore[reportReturnType]


def targeting(entry: str) -> str:
    """The pattern, for names of modules, of an entry of `lora_target_modules`, which is a name as PEFT reads one or a
    pattern.

    Raises:
        UserError: it is neither.
    """
    return rf"(?:.*\.)?{re.escape(entry)}" if _NAME.fullmatch(entry) else _pattern(entry, "lora_target_modules")


def _pattern(entry: str, key: str) -> str:
    try:
        re.compile(entry)
    except re.error as error:
        raise UserError(f"{key}: {entry!r} is no pattern ({error}); .* stands for any text") from None
    return f"(?:{entry})"


def excluding(entry: str) -> str:
    """The pattern, for names of modules, of an entry of `lora_exclude_modules`.

    PEFT compares a name with the ends of names alone, so that `visual` would leave out nothing.

    Raises:
        UserError: it is neither a name nor a pattern.
    """
    if _NAME.fullmatch(entry):
        return rf"(?:.*\.)?{re.escape(entry)}(?:\..*)?"
    return _pattern(entry, "lora_exclude_modules")
