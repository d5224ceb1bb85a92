"""Whether the sampler's weights are still the trainer's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch


if TYPE_CHECKING:
    from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer


class WeightVersion:
    """Tells whether the sampler's weights are still the trainer's, on every rank alike.

    Attributes:
        count: Syncs so far.
    """

    def __init__(self, trainer: MMSearchGRPOTrainer) -> None:
        self._trainer = trainer
        self._sent: int | None = None
        self.count = 0

    def changed(self, *, also: bool = False) -> bool:
        """Whether any rank's weights were written to since they were sent; a collective call."""
        mine = also or self._sent is None or self._sent != self._writes()
        flag = torch.tensor([mine], device=self._trainer.accelerator.device)
        return bool(self._trainer.accelerator.gather(flag).any())

    def sent(self) -> None:
        self._sent = self._writes()
        self.count += 1

    def _writes(self) -> int:
        """Writes to any parameter: PyTorch counts them per tensor. The step stands for sharded ones."""
        writes = sum(parameter._version for parameter in self._trainer.model.parameters())
        return writes + self._trainer.state.global_step
