"""Weights that are sharded over ranks, gathered for as long as a rollout lasts.

Ranks write different numbers of turns of different lengths. FSDP2 gathers a layer's weights in every forward pass, a
call that all ranks must make together: without this they would wait for each other for ever. DeepSpeed's ZeRO-3 is
gathered by TRL (`ds3_gather_for_generation`).

In training, layers are gathered one by one, and so all ranks must run the same ones: a vision tower that only some of
them run, since the rows of the others have no picture, ends in a crash or in waiting for ever.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.distributed.ranks import Ranks


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


def shards_weights(accelerator: Accelerator) -> bool:
    """Whether a forward pass gathers weights from other ranks."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    zero3 = plugin is not None and plugin.zero_stage == 3
    return zero3 or accelerator.distributed_type is DistributedType.FSDP


def check_pictures_alike(with_pictures: int, rows: int, ranks: Ranks) -> None:
    """Refuse rows with pictures beside rows without, before sharded weights meet them; a collective call.

    Args:
        with_pictures: Of this rank's rows, those that hold one.
        rows: Of this rank.

    Raises:
        UserError: on all ranks.
    """
    some, all_rows = ranks.sum([with_pictures, rows])
    if 0 < some < all_rows:
        raise UserError(
            f"{int(some)} of {int(all_rows)} rows hold a picture, and with sharded weights (ZeRO-3, FSDP) all must or "
            "none: ranks would run different layers and wait for each other for ever. Train the two kinds apart, or "
            "shard the optimizer alone (accelerate_configs/zero2.yaml)"
        )
