"""What a trainer sends to a sampler: all weights under their checkpoint's names, or a LoRA adapter alone.

Nothing is merged in place: a merged weight is computed beside its base weight, which keeps every bit. Merging and
unmerging in place, as TRL does, moves bf16 weights a little in every step. Weights sharded by FSDP2 or DeepSpeed's
ZeRO-3 are gathered one layer at a time, which is a collective call: every rank must run an iterator of this module to
its end, whether or not it sends anything.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import Embedding, Linear, LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from mmsearch_trl.core.errors import UserError


_CHECKPOINTED = "_checkpoint_wrapped_module."
"""What activation checkpointing puts into the names of the modules that it wraps."""


def sampler_weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All weights as `save_pretrained` would name them, active adapters merged; a tied weight comes once.

    Each is as the model stores it, in type and device, and is made when it is asked for. It may share memory with the
    model: read it before the model changes, and do not write to it.

    Args:
        model: A transformers model, or a PEFT model around one, unwrapped.

    Raises:
        UserError: an adapter or a kind of sharding that cannot be expressed as plain weights.
    """
    base = _base(model)
    weights = _untied(base, list(_stored(base, "")))
    renamed = _checkpoint_names(base, weights)
    for name, stored in renamed.items():
        with _gathered(stored.parameters()):
            yield name, stored.value()
    done = {stored.name for stored in renamed.values()}
    for stored in (weight for weight in weights if weight.name not in done):
        with _gathered(stored.parameters()):
            yield from revert_weight_conversion(base, {stored.name: stored.value()}).items()


def adapter_weights(model: PeftModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of the active LoRA adapter under the names of PEFT's own adapter files.

    Raises:
        UserError: vLLM cannot serve this adapter by itself.
    """
    if obstacle := native_adapter_obstacle(model):
        raise UserError(f"vLLM cannot serve the adapter by itself: {obstacle}")
    adapter = model.active_adapters[0]
    for path, layer in _adapted(model, adapter):
        for part, matrix in (("lora_A", layer.lora_A[adapter]), ("lora_B", layer.lora_B[adapter])):
            weight = matrix.get_parameter("weight")
            with _gathered([weight]):
                yield f"base_model.model.{path}.{part}.weight", _whole(weight)


def native_adapter_obstacle(model: nn.Module, max_rank: int | None = None) -> str | None:
    """Why vLLM cannot apply the model's adapter to the base weights that it loaded; None when it can.

    vLLM refuses some adapters and silently computes something else with others: it reads one rank and one alpha for
    all layers, and leaves out what lies in the vision tower.

    Args:
        max_rank: The server's `max_lora_rank`.
    """
    if not isinstance(model, PeftModel):
        return "the model has no adapter"
    if len(model.active_adapters) != 1:
        return f"it applies one adapter to a request, and {len(model.active_adapters)} are active"
    adapter = model.active_adapters[0]
    config = model.peft_config[adapter]
    if not isinstance(config, LoraConfig):
        return f"it serves LoRA adapters, and this one is {type(config).__name__.removesuffix('Config')}"
    reasons = [*_config_obstacles(config, max_rank), *_layer_obstacles(model, adapter, config)]
    return "; ".join(reasons) or None


def _config_obstacles(config: LoraConfig, max_rank: int | None) -> Iterator[str]:
    if max_rank is not None and config.r > max_rank:
        yield f"rank {config.r} is over the sampler's highest, {max_rank}"
    if config.modules_to_save:
        yield f"it takes no whole modules (modules_to_save: {', '.join(config.modules_to_save)})"
    if config.bias != "none":
        yield f"it takes no trained biases (bias: {config.bias})"
    if config.lora_bias:
        yield "it takes no adapter biases (lora_bias)"
    if config.target_parameters:
        yield f"it takes no adapters on bare parameters (target_parameters: {', '.join(config.target_parameters)})"
    if config.trainable_token_indices:
        yield "it takes no single trained embeddings (trainable_token_indices)"
    start = str(config.init_lora_weights)
    if start.startswith(("pissa", "corda")) or start in ("olora", "loftq", "lora_ga"):
        yield f"the adapter's initialisation changed the base weights (init_lora_weights: {start})"


def _layer_obstacles(model: PeftModel, adapter: str, config: LoraConfig) -> Iterator[str]:
    base = _base(model)
    language = {id(module) for module in base.get_decoder().modules()}
    scaling = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
    layers = _adapted(model, adapter)
    if outside := [path for path, layer in layers if id(layer) not in language]:
        yield f"it applies LoRA in the language model's layers only, and {_some(outside)} is elsewhere"
    if special := [path for path, layer in layers if type(layer) is not Linear and id(layer) in language]:
        yield f"it applies LoRA to linear layers only, and {_some(special)} is none"
    if variants := {type(v).__name__ for _, layer in layers for a, v in layer.lora_variant.items() if a == adapter}:
        yield f"it serves plain LoRA only ({', '.join(sorted(variants))})"
    uneven = [path for path, layer in layers if (layer.r[adapter], layer.scaling[adapter]) != (config.r, scaling)]
    if uneven:
        yield f"it knows one rank and one alpha for all layers, and {_some(uneven)} has its own"
    if merged := [path for path, layer in layers if layer.merged]:
        yield f"an adapter is merged into the base weights of {_some(merged)}"
    own = [{id(p) for p in cast(nn.Module, layer).parameters()} for _, layer in layers]
    parts = set().union(*own) - {id(p) for _, layer in layers for p in layer.get_base_layer().parameters()}
    trained = [name for name, p in base.named_parameters() if p.requires_grad and id(p) not in parts]
    if trained and config.bias == "none" and not (config.modules_to_save or config.trainable_token_indices):
        yield f"weights outside of the adapter are trained, such as {_some(trained)}"


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (of {len(names)})"


@dataclass(frozen=True, slots=True)
class _Stored:
    """A weight of the checkpoint: a parameter, and the LoRA adapters to be merged into it."""

    name: str
    parameter: nn.Parameter
    layer: Linear | Embedding | None = None
    adapters: tuple[str, ...] = ()

    def parameters(self) -> list[nn.Parameter]:
        """What must be gathered to compute it."""
        return [self.parameter, *(_matrices(self.layer, self.adapters) if self.layer is not None else [])]

    @torch.no_grad()
    def value(self) -> torch.Tensor:
        weight = _whole(self.parameter)
        if self.layer is None or not self.adapters:
            return weight
        merged = weight.float()
        for adapter in self.adapters:
            merged = merged + _whole(self.layer.get_delta_weight(adapter))
        return merged.to(weight.dtype)


def _base(model: nn.Module) -> PreTrainedModel:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, PreTrainedModel):
        raise TypeError(f"weights are read from an unwrapped transformers model, and this is {type(model).__name__}")
    return base


def _stored(module: nn.Module, prefix: str) -> Iterator[_Stored]:
    """The weights below a module under the names that they have without PEFT, tied ones each time."""
    if isinstance(module, FullyShardedDataParallel):
        raise UserError("weights sharded by FSDP1 cannot be read one at a time: use FSDP2 (fsdp_version: 2)")
    if isinstance(module, BaseTunerLayer):
        yield from _adapted_layer(module, prefix)
        return
    if isinstance(module, AuxiliaryTrainingWrapper):
        module = _chosen(module, prefix)
    for name, parameter in module.named_parameters(recurse=False):
        yield _plain(prefix + name, parameter)
    for name, child in module.named_children():
        yield from _stored(child, f"{prefix}{name}.".replace(_CHECKPOINTED, ""))


def _adapted_layer(layer: BaseTunerLayer, prefix: str) -> Iterator[_Stored]:
    path = prefix.removesuffix(".")
    if not isinstance(layer, Linear | Embedding):
        raise UserError(f"{path}: {type(layer).__name__} adapters cannot be merged into the weights that are sent")
    present = layer.lora_A.keys() | layer.lora_embedding_A.keys()
    merged = set(layer.merged_adapters)
    active = [] if layer.disable_adapters else layer.active_adapters
    adapters = tuple(name for name in active if name in present and name not in merged)
    for name in adapters:
        variant = layer.lora_variant.get(name)
        if variant is not None or layer.lora_bias.get(name):
            kind = "a LoRA with biases" if variant is None else type(variant).__name__
            raise UserError(f"{path}: only plain LoRA can be merged into the weights that are sent, not {kind}")
    for name, parameter in layer.get_base_layer().named_parameters(recurse=False):
        plain = _plain(prefix + name, parameter)
        yield _Stored(plain.name, parameter, layer, adapters) if name == "weight" else plain


def _chosen(wrapper: AuxiliaryTrainingWrapper, prefix: str) -> nn.Module:
    """The module that a wrapper of PEFT computes with."""
    if not isinstance(wrapper, ModulesToSaveWrapper):
        raise UserError(f"{prefix.removesuffix('.')}: {type(wrapper).__name__} cannot be written as plain weights")
    active = [] if wrapper.disable_adapters else wrapper.active_adapters
    chosen = [name for name in active if name in wrapper.modules_to_save]
    return wrapper.modules_to_save[chosen[0]] if chosen else wrapper.original_module


def _plain(name: str, parameter: nn.Parameter) -> _Stored:
    if not parameter.is_floating_point():
        raise UserError(f"{name} is quantised ({parameter.dtype}), and a sampler takes plain weights")
    return _Stored(name, parameter)


def _untied(base: PreTrainedModel, weights: Sequence[_Stored]) -> list[_Stored]:
    """The weights without those that are a second name of another.

    Raises:
        UserError: weights that the sampler ties are not the same any more.
    """
    ties, by_name = base.all_tied_weights_keys, {weight.name: weight for weight in weights}
    for name, source in ties.items():
        pair = by_name[name], by_name[source]
        if pair[0].parameter is not pair[1].parameter or any(weight.adapters for weight in pair):
            raise UserError(f"{name} and {source} are one weight in the sampler, and are trained apart")
    return [weight for weight in weights if weight.name not in ties]


def _checkpoint_names(base: PreTrainedModel, weights: Collection[_Stored]) -> dict[str, _Stored]:
    """The weights by the names that transformers writes to files, which are the ones that vLLM reads.

    Those that it would write in another form, as the experts of a mixture, are left out.
    """
    marks = {weight.name: torch.empty(_shape(weight.parameter), device="meta") for weight in weights}
    stored = {id(marks[weight.name]): weight for weight in weights}
    named = revert_weight_conversion(base, marks)
    return {name: stored[id(mark)] for name, mark in named.items() if id(mark) in stored}


def _shape(parameter: nn.Parameter) -> torch.Size:
    """Of the whole parameter, where ZeRO-3 has partitioned it as well."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _adapted(model: PeftModel, adapter: str) -> list[tuple[str, LoraLayer]]:
    """The layers that an adapter changes, by their paths without PEFT."""
    layers = [(path, module) for path, module in _base(model).named_modules() if isinstance(module, LoraLayer)]
    return [
        (path.replace(_CHECKPOINTED, ""), layer)
        for path, layer in layers
        if adapter in layer.lora_A or adapter in layer.lora_embedding_A
    ]


def _matrices(layer: LoraLayer, adapters: Collection[str]) -> list[nn.Parameter]:
    linear = [part[name] for part in (layer.lora_A, layer.lora_B) for name in adapters if name in part]
    embedded = [part[n] for part in (layer.lora_embedding_A, layer.lora_embedding_B) for n in adapters if n in part]
    return [*(parameter for matrix in linear for parameter in matrix.parameters()), *embedded]


def _gathered(parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None]:
    """Parameters partitioned by ZeRO-3, whole; nothing for others."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return nullcontext()
    import deepspeed  # pyright: ignore[reportMissingImports]  (an optional package)

    return deepspeed.zero.GatheredParameters(list(parameters))


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        # Offloaded shards lie in host memory, where the mesh's back end cannot gather them.
        return cast(DTensor, tensor.to(tensor.device_mesh.device_type)).full_tensor()
    return tensor
