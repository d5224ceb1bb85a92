"""A model's shape: built of its configuration, without weights, for what LoRA, attention and memory come to."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from mmsearch_trl.core.boundaries import loading
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.models.published import published_config
from mmsearch_trl.recipe.adapter_keys import check_continued, check_targets
from mmsearch_trl.recipe.build import base_of
from mmsearch_trl.recipe.model_config import RecipeModelConfig
from mmsearch_trl.recipe.start import trained_adapter
from mmsearch_trl.trainer.freezing import frozen_parameters, nothing_left


_BITS = {"load_in_4bit": 4.5, "load_in_8bit": 8.5}
"""Of a quantized weight, with its scales."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Of a model: how many, and their bytes as they are loaded."""

    count: int
    bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """What activations and key-value caches are counted by; `patch` in pixels, of a vision tower.

    Attributes:
        mlp: Inner width that a token passes through; of a mixture, that of the experts which it is sent to.
        caching: Of the layers, those that keep keys and values of every token; linear attention keeps none.
    """

    depth: int
    width: int
    mlp: int = 0
    caching: int = 0
    key_values: int = 0
    patch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """
    Attributes:
        family: `model_type` of its configuration.
        base: Of the model without an adapter.
        trained: Of what is trained, adapter or not.
        frozen: Of the rest.
        adapter: Whether one is trained, so that its base model is the reference of the KL term.
        vision: None for a language model.
    """

    family: str
    base: Weights
    trained: Weights
    frozen: Weights
    adapter: bool
    language: Layers
    vision: Layers | None

    @property
    def parameters(self) -> int:
        """All of them, those of an adapter included."""
        return self.trained.count + self.frozen.count


def model_shape(
    model: RecipeModelConfig,
    *,
    freeze_vision: bool = False,
    freeze_prefix: Sequence[str] = (),
    written: Sequence[str] = (),
    published: bool = False,
) -> ModelShape:
    """
    Args:
        written: Keys that the recipe gives; those of an adapter that is trained on must say what it is.
        published: Where the configuration is not on this machine, take that which was published under the name.

    Raises:
        UserError: the configuration cannot be built, an attention is not to be had, or an adapter fits nowhere.
    """
    config = _config(model, published=published)
    bare = _bare(config, model)
    frozen_parameters(bare, freeze_prefix, freeze_vision=freeze_vision)
    whole: nn.Module = bare
    base = Weights(count=_count(bare.parameters()), bytes=sum(_bytes(weight, model) for weight in bare.parameters()))
    own = {id(weight) for weight in bare.parameters()}
    if (adapter := trained_adapter(model)) is not None:
        check_targets(bare, model)
        if model.from_adapter == "continue":
            check_continued(copy.deepcopy(bare), model, adapter, written)
        whole = _adapted(bare, adapter)
    elif model.load_in_4bit or model.load_in_8bit:
        raise UserError("load_in_4bit, load_in_8bit: quantized weights cannot be trained: set use_peft: true, too")
    left = {id(weight) for _, weight in frozen_parameters(whole, freeze_prefix, freeze_vision=freeze_vision)}
    parameters = list(whole.parameters())
    trained = [weight for weight in parameters if weight.requires_grad and id(weight) not in left]
    if not trained and left:
        raise nothing_left(freeze_prefix, freeze_vision=freeze_vision)
    learning = {id(weight) for weight in trained}
    frozen = [weight for weight in parameters if id(weight) not in learning]
    return ModelShape(
        family=config.model_type,
        base=base,
        trained=Weights(
            count=_count(trained), bytes=sum(weight.numel() * weight.element_size() for weight in trained)
        ),
        frozen=Weights(
            count=_count(frozen), bytes=sum(_bytes(weight, model if id(weight) in own else None) for weight in frozen)
        ),
        adapter=adapter is not None,
        language=_language(config.get_text_config()),
        vision=_vision(getattr(config, "vision_config", None)),
    )


def _config(model: RecipeModelConfig, *, published: bool) -> Any:
    name, revision = str(model.model_name_or_path), model.model_revision
    if model.from_adapter is not None:
        name, revision = base_of(model)
    elif published and (config := published_config(name)) is not None:
        return config
    with loading("the model", name):
        return AutoConfig.from_pretrained(name, revision=revision)


def _bare(config: Any, model: RecipeModelConfig) -> nn.Module:
    loader = AutoModelForCausalLM if config.get_text_config() is config else AutoModelForImageTextToText
    named = model.dtype if model.dtype not in (None, "auto") else None
    options: dict[str, Any] = {
        "attn_implementation": model.attn_implementation,
        "dtype": getattr(torch, named) if named else (config.dtype or torch.float32),
    }
    with loading("the model", str(model.model_name_or_path)), torch.device("meta"):
        return loader.from_config(config, **options)


def _adapted(bare: nn.Module, adapter: PeftConfig) -> nn.Module:
    try:
        # On no device, as the model: its weights are counted and never drawn.
        return get_peft_model(bare, adapter, low_cpu_mem_usage=True)  # pyright: ignore[reportArgumentType]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"lora_target_modules: the adapter does not fit the model: {' '.join(str(error).split())[:400]}"
        ) from error


def _count(weights: Any) -> int:
    return sum(weight.numel() for weight in weights)


def _bytes(weight: nn.Parameter, model: RecipeModelConfig | None) -> float:
    bits = next((bits for key, bits in _BITS.items() if model is not None and getattr(model, key)), None)
    return weight.numel() * (bits / 8 if bits and weight.ndim == 2 else weight.element_size())


def _language(text: Any) -> Layers:
    heads, width = text.num_attention_heads, text.hidden_size
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    return Layers(
        depth=text.num_hidden_layers,
        width=width,
        mlp=_mlp(text),
        caching=sum(kind != "linear_attention" for kind in kinds),
        key_values=(getattr(text, "num_key_value_heads", None) or heads)
        * (getattr(text, "head_dim", None) or width // heads),
    )


def _mlp(text: Any) -> int:
    """Families name it differently; four times the width is the rule of those that do not."""
    chosen = getattr(text, "num_experts_per_tok", None)
    if chosen and (expert := getattr(text, "moe_intermediate_size", None)):
        return chosen * expert + (getattr(text, "shared_expert_intermediate_size", None) or 0)
    return getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * text.hidden_size


def _vision(vision: Any) -> Layers | None:
    if vision is None:
        return None
    return Layers(depth=vision.depth, width=getattr(vision, "embed_dim", vision.hidden_size), patch=vision.patch_size)
