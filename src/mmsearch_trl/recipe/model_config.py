"""The model keys of a recipe: TRL's, and those that it lacks."""

import re
from dataclasses import dataclass, field
from typing import Literal

from peft import LoraConfig
from trl import ModelConfig, get_peft_config


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


def adapter_config(model: ModelConfig) -> LoraConfig | None:
    """The adapter that a recipe asks for; None where all weights are trained."""
    adapter = get_peft_config(model)
    excluded: list[str] | None = getattr(model, "lora_exclude_modules", None)
    if adapter is not None and excluded:
        adapter.exclude_modules = "|".join(map(excluding, excluded))  # pyright: ignore[reportAttributeAccessIssue]
    return adapter  # pyright: ignore[reportReturnType]


def excluding(entry: str) -> str:
    """The pattern, for names of modules, of an entry of `lora_exclude_modules`.

    PEFT compares a name with the ends of names alone, so that `visual` would leave out nothing.
    """
    if re.fullmatch(r"[\w.]+", entry):
        return rf"(?:.*\.)?{re.escape(entry)}(?:\..*)?"
    return f"(?:{entry})"
