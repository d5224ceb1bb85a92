"""Weights that are sharded over ranks, gathered for as long as a rollout lasts.

Ranks write different numbers of turns of different lengths. FSDP2 gathers a layer's weights in every forward pass, a
call that all ranks must make together: without this they would wait for each other for ever. DeepSpeed's ZeRO-3 is
gathered by TRL (`ds3_gather_for_generation`).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from accelerate import DistributedType, PartialState
from torch import nn
from torch.distributed.fsdp import FSDPModule, StateDictType

from mmsearch_trl.core.errors import UserError


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Keep the weights of every FSDP2 module of `model` whole; nothing for a model that is not sharded.

    Every rank must enter and leave it.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    # What `register_fsdp_forward_method` puts in the place of `generate` shards the root's weights after every call.
    # It would also make the model the root; else that is what runs first, which below an adapter is an inner module.
    registered = model.__dict__.pop("generate", None)
    if isinstance(model, FSDPModule):
        model._get_fsdp_state()._lazy_init()
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        if registered is not None:
            model.__dict__["generate"] = registered
        for module in sharded:
            module.reshard()
            # FSDP2's own default: the root stays gathered between forward and backward.
            module.set_reshard_after_forward(module is not model, recurse=False)


def check_sharded() -> None:
    """Refuse processes on CPUs that were launched with FSDP: accelerate would copy the model to each without a word.

    Raises:
        UserError: these are such processes.
    """
    kind = PartialState().distributed_type
    if kind == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise UserError(
            "accelerate shards weights with FSDP between GPUs alone, and these processes run on CPUs: launch them "
            "with accelerate_configs/ddp.yaml (--accelerate ddp)"
        )


def keep_outputs_exact(accelerator: Any) -> None:
    """Have FSDP2 hand on what a model returns as the model computed it.

    In mixed precision accelerate has it rounded to bf16: log-probs, values and losses would keep two digits.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version == 2 and plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)


@contextmanager
def saved_whole(accelerator: Any) -> Iterator[None]:
    """Have transformers save the whole model with FSDP: beside shards, it saves none that can be loaded."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        yield
        return
    kind, plugin.state_dict_type = plugin.state_dict_type, StateDictType.FULL_STATE_DICT
    try:
        yield
    finally:
        plugin.state_dict_type = kind
