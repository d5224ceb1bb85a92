"""Keys of LoRA held against the model's modules, on a model without weights."""

import re
from collections.abc import Sequence
from typing import Any

from peft import LoraConfig, PeftConfig, get_peft_model
from torch import nn

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.nearest import did_you_mean
from mmsearch_trl.recipe.model_config import RecipeModelConfig, adapter_config, excluding, targeting


_PLAIN = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
"""Keys that are one value of an adapter's configuration."""
_OF_MODULES = ("lora_target_modules", "lora_target_parameters", "lora_modules_to_save", "lora_exclude_modules")


def check_targets(bare: nn.Module, model: RecipeModelConfig) -> None:
    """PEFT refuses targets none of which is there, and passes over those that are not where others are.

    Raises:
        UserError: a module that is to be adapted, left out, or saved whole, is none of the model's.
    """
    names = [name for name, _ in bare.named_modules() if name]
    last = sorted({name.rpartition(".")[2] for name in names} - set(map(str, range(1000))))
    given: Any = model.lora_target_modules or []
    listed: Sequence[str] = [] if isinstance(given, str) else given
    if isinstance(given, str) and given != "all-linear":
        listed = [given]
    for key, wanted in (("lora_target_modules", listed), ("lora_modules_to_save", model.lora_modules_to_save or [])):
        for target in wanted:
            if not any(re.fullmatch(targeting(target), name) for name in names):
                near = did_you_mean(target, last)
                raise UserError(f"{key}: no module of the model is, or matches, {target!r}{near}{_such(last)}")
    for entry in model.lora_exclude_modules or []:
        if not any(re.fullmatch(excluding(entry), name) for name in names):
            near = did_you_mean(entry, last)
            raise UserError(f"lora_exclude_modules: no module of the model is, or matches, {entry!r}{near}")
    if any(re.fullmatch(targeting(target), "lm_head") for target in listed):
        raise UserError("lora_target_modules: lm_head cannot be adapted: log-probs are computed from its own weights")


def check_continued(bare: nn.Module, model: RecipeModelConfig, saved: PeftConfig, written: Sequence[str]) -> None:
    """The keys of an adapter that is trained on say what it is, where they say something.

    Args:
        bare: Is changed.
        written: Keys that the recipe gives.

    Raises:
        UserError: one of them says something else.
    """
    name, wanted = model.model_name_or_path, adapter_config(model)
    assert isinstance(wanted, LoraConfig)
    for key, attribute in _PLAIN.items():
        there = getattr(saved, attribute, None)
        if key in written and getattr(wanted, attribute) != there:
            raise UserError(
                f"{key}: the adapter {name}, which is trained on (from_adapter: continue), has {there}, not "
                f"{getattr(wanted, attribute)}: leave the key out, or take from_adapter: merge"
            )
    given = [key for key in _OF_MODULES if key in written]
    if given and _trained_names(bare, saved) != _trained_names(bare, wanted):
        raise UserError(
            f"{', '.join(given)}: the adapter {name}, which is trained on (from_adapter: continue), is on other "
            "modules: leave the key out, or take from_adapter: merge"
        )


def _trained_names(bare: nn.Module, adapter: PeftConfig) -> set[str]:
    adapted = get_peft_model(bare, adapter)  # pyright: ignore[reportArgumentType]
    names = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    adapted.unload()
    return names


def _such(last: Sequence[str]) -> str:
    linear = [name for name in last if name.endswith(("proj", "fc1", "fc2", "qkv"))]
    return f" (it has {', '.join(linear[:12])})" if linear else ""
