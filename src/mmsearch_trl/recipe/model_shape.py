"""A model's shape: built of its configuration, without weights, for what LoRA, attention and memory come to."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from trl import ModelConfig, get_peft_config

from mmsearch_trl.core.boundaries import loading
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.nearest import did_you_mean


_GIB = 1 << 30
_BITS = {"load_in_4bit": 4.5, "load_in_8bit": 8.5}
"""Of a quantized weight, with its scales."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """
    Attributes:
        family: `model_type` of its configuration.
        parameters: All of them, those of an adapter included.
        trained: Of these.
        gib: Of weights, gradients and optimizer states in one process, without sharding.
    """

    family: str
    parameters: int
    trained: int
    gib: float


def model_shape(model: ModelConfig, *, optim: str, freeze_vision: bool, reference: bool) -> ModelShape:
    """
    Args:
        reference: A second copy of the weights is held.

    Raises:
        UserError: the configuration cannot be built, an attention is not to be had, or an adapter fits nowhere.
    """
    name = str(model.model_name_or_path)
    with loading("the model", name):
        config = AutoConfig.from_pretrained(name, revision=model.model_revision)
        loader = AutoModelForCausalLM if config.get_text_config() is config else AutoModelForImageTextToText
        with torch.device("meta"):
            options: dict[str, Any] = {
                "attn_implementation": model.attn_implementation,
                "dtype": _dtype(model, config),
            }
            bare = loader.from_config(config, **options)
    held = sum(_bytes(weight, model) for weight in bare.parameters())
    vision = [name for name, _ in bare.named_parameters() if ".visual." in name]
    if freeze_vision and not vision:
        raise UserError("freeze_vision: the model has no vision tower (no parameter is named .visual.)")
    whole: nn.Module = bare
    if (adapter := get_peft_config(model)) is not None:
        check_targets(bare, model)
        whole = _adapted(bare, adapter)
        held += sum(_bytes(weight, None) for weight in whole.parameters() if weight.requires_grad)
    elif model.load_in_4bit or model.load_in_8bit:
        raise UserError("load_in_4bit, load_in_8bit: quantized weights cannot be trained: set use_peft: true, too")
    trained = [
        weight
        for name, weight in whole.named_parameters()
        if weight.requires_grad and not (freeze_vision and ".visual." in name)
    ]
    states = 0.0 if "sgd" in optim or "adafactor" in optim else 2.0
    learning = sum(
        weight.numel() * (weight.element_size() + states * (1 if "8bit" in optim else weight.element_size()))
        for weight in trained
    )
    copies = sum(_bytes(weight, model) for weight in bare.parameters()) if reference and adapter is None else 0
    return ModelShape(
        family=config.model_type,
        parameters=sum(weight.numel() for weight in whole.parameters()),
        trained=sum(weight.numel() for weight in trained),
        gib=(held + learning + copies) / _GIB,
    )


def memory_here() -> tuple[float, str]:
    """GiB of the device that a process would train on, and what it is."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory / _GIB, "this GPU"
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB, "this machine"


def check_targets(bare: nn.Module, model: ModelConfig) -> None:
    """PEFT refuses targets none of which is there, and passes over those that are not where others are.

    Raises:
        UserError: a module that is to be adapted, or saved whole, is none of the model's.
    """
    names = [name for name, _ in bare.named_modules() if name]
    last = sorted({name.rpartition(".")[2] for name in names} - set(map(str, range(1000))))
    given: Any = model.lora_target_modules or []
    listed: Sequence[str] = [] if isinstance(given, str) else given
    if isinstance(given, str) and given != "all-linear":  # a pattern, and TRL makes one of a single name
        matched = [name for name in names if re.fullmatch(given, name)]
        if not matched and not given.isidentifier():
            raise UserError(f"lora_target_modules: no module of the model matches {given!r}{_such(last)}")
        listed = matched or [given]
    for key, wanted in (("lora_target_modules", listed), ("lora_modules_to_save", model.lora_modules_to_save or [])):
        for target in wanted:
            if target != "all-linear" and not any(name == target or name.endswith(f".{target}") for name in names):
                raise UserError(f"{key}: the model has no module {target!r}{did_you_mean(target, last)}{_such(last)}")
    if "lm_head" in listed:
        raise UserError("lora_target_modules: lm_head cannot be adapted: log-probs are computed from its own weights")


def _such(last: Sequence[str]) -> str:
    linear = [name for name in last if name.endswith(("proj", "fc1", "fc2", "qkv"))]
    return f" (it has {', '.join(linear[:12])})" if linear else ""


def _adapted(bare: nn.Module, adapter: PeftConfig) -> nn.Module:
    try:
        return get_peft_model(bare, adapter)  # pyright: ignore[reportArgumentType]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"lora_target_modules: the adapter does not fit the model: {' '.join(str(error).split())[:400]}"
        ) from error


def _dtype(model: ModelConfig, config: Any) -> torch.dtype:
    named = model.dtype if model.dtype not in (None, "auto") else None
    return getattr(torch, named) if named else (config.dtype or torch.float32)


def _bytes(weight: nn.Parameter, model: ModelConfig | None) -> float:
    bits = next((bits for key, bits in _BITS.items() if model is not None and getattr(model, key)), None)
    return weight.numel() * (bits / 8 if bits and weight.ndim == 2 else weight.element_size())
