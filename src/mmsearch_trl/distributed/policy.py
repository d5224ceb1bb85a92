"""The trained model, as those see it who sample from it: unwrapped, with whole weights, and the version of these."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor
from trl.distributed import DistributedBackend
from trl.models import unwrap_model_for_generation

from mmsearch_trl.distributed.sharding import gathered


@dataclass(frozen=True, slots=True)
class Policy:
    """The model of a run at one moment.

    Attributes:
        wrapped: The model as distributed training wraps it.
        step: Optimizer steps taken.
    """

    accelerator: Accelerator
    wrapped: nn.Module
    step: int

    @property
    def model(self) -> Any:
        """The model itself, without what distributed training wraps around it; a `PeftModel` stays one."""
        return self.accelerator.unwrap_model(self.wrapped)

    @property
    def version(self) -> int:
        """Changes with every write to a weight: PyTorch counts them per tensor; the step stands for sharded ones."""
        return sum(parameter._version for parameter in self.model.parameters()) + self.step

    def fingerprint(self) -> str:
        """Digest of 64 values spread over each parameter, of this rank's shard where weights are sharded.

        An optimizer step moves nearly every value, so that two states of a training run differ in it.
        """
        digest = hashlib.sha256()
        for name, parameter in self.model.named_parameters():
            local = getattr(parameter, "ds_tensor", parameter).detach()
            flat = (local.to_local() if isinstance(local, DTensor) else local).reshape(-1)
            values = flat[:: max(1, flat.numel() // 64)][:64].to("cpu", torch.float64)
            digest.update(f"{name} {tuple(parameter.shape)}".encode() + values.numpy().tobytes())
        return digest.hexdigest()

    def num_bytes(self, *, trainable_only: bool) -> int:
        """Of the weights, over all ranks."""
        parameters = [p for p in self.model.parameters() if p.requires_grad or not trainable_only]
        return sum(int(getattr(p, "ds_numel", p.numel())) * p.element_size() for p in parameters)

    @contextmanager
    def generating(self, checkpointing_kwargs: Any) -> Iterator[Any]:
        """The model ready to generate, sharded weights gathered (FSDP2's here, else by TRL); every rank must enter it.

        Args:
            checkpointing_kwargs: Of gradient checkpointing, which is off meanwhile.
        """
        with (
            unwrap_model_for_generation(
                self.wrapped,
                self.accelerator,
                gather_deepspeed3_params=True,
                gradient_checkpointing_kwargs=checkpointing_kwargs,
            ) as model,
            torch.no_grad(),
            DistributedBackend(self.accelerator).summon_full_params(self.wrapped, recurse=False),
            gathered(model),
        ):
            yield model
