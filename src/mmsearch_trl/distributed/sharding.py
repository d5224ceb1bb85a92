"""Weights that are sharded over ranks, gathered for as long as a rollout lasts.

Ranks write different numbers of turns of different lengths. FSDP2 gathers a layer's weights in every forward pass, a
call that all ranks must make together: without this they would wait for each other for ever. DeepSpeed's ZeRO-3 is
gathered by TRL (`ds3_gather_for_generation`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Keep the weights of every FSDP2 module of `model` whole; nothing for a model that is not sharded.

    Every rank must enter and leave it.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
            # FSDP2's own default: the root stays gathered between forward and backward.
            module.set_reshard_after_forward(module is not model, recurse=False)
