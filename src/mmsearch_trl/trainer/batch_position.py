"""Where training stands inside a generation batch, as a checkpoint keeps it.

A batch of rollouts serves `steps_per_generation x num_iterations` micro-batches, often several optimizer steps, and a
checkpoint may fall between these. TRL rolls out again when it resumes there: with newer weights than the rest of the
batch had, and from then on at other steps than the uninterrupted run. So the checkpoint holds the batch, its old
log-probs and pictures included; one that falls between two batches holds a number.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from trl import GRPOConfig

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.trainer.surplus import Groups, packed, unpacked


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """What a batch is cut by; it can be gone on with in no other."""

    num_generations: int
    per_device_train_batch_size: int
    steps_per_generation: int
    num_iterations: int
    gradient_accumulation_steps: int
    processes: int

    @classmethod
    def of(cls, args: GRPOConfig) -> "BatchLayout":
        return cls(
            int(args.num_generations or 1),
            args.per_device_train_batch_size,
            int(args.steps_per_generation or 1),
            args.num_iterations,
            args.gradient_accumulation_steps,
            args.world_size,
        )

    @property
    def generate_every(self) -> int:
        """Micro-batches that one generation batch serves."""
        return self.steps_per_generation * self.num_iterations


@dataclass(frozen=True, slots=True)
class BatchPosition:
    """Of one process.

    Attributes:
        micro_step: Micro-batches trained on since the run began.
        micro_batches: Those of the current generation batch; None between two batches.
        kl: The state of the coefficient of an estimator's KL term, if there is one.
        surplus: Rollouts that wait for the next batch.
        outage: What an `OutageMonitor` had seen.
    """

    micro_step: int
    micro_batches: list[dict[str, Any]] | None
    kl: tuple[float, float] | None = None
    surplus: Groups = field(default_factory=Groups)
    outage: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def at(
        cls,
        micro_step: int,
        micro_batches: Any,
        layout: BatchLayout,
        kl: tuple[float, float] | None = None,
        surplus: Groups | None = None,
    ) -> "BatchPosition":
        """
        Args:
            micro_batches: What the trainer has last generated.
        """
        inside = micro_step % layout.generate_every
        return cls(micro_step, micro_batches if inside else None, kl, surplus or Groups())

    def save(self, checkpoint: Path, rank: int, layout: BatchLayout) -> None:
        content = {"layout": asdict(layout), "micro_step": self.micro_step, "micro_batches": self.micro_batches}
        content |= {"kl": self.kl, "surplus": packed(self.surplus), "outage": self.outage}
        torch.save(content, _file(checkpoint, rank))

    @classmethod
    def load(
        cls, checkpoint: Path, rank: int, layout: BatchLayout, step: int, device: torch.device
    ) -> "BatchPosition":
        """
        Args:
            step: Optimizer steps taken, for a checkpoint that tells nothing of batches.

        Raises:
            UserError: it lies inside a batch that this run cannot go on with.
        """
        file = _file(checkpoint, rank)
        micro_step, micro_batches, cut = step * layout.gradient_accumulation_steps, None, layout
        kl: tuple[float, float] | None = None
        surplus, outage = Groups(), {}
        if file.is_file():
            # To main memory first: torch knows no "cpu:0", which a rank of several is on.
            content = torch.load(file, map_location="cpu", weights_only=True)
            saved, kl, outage = BatchLayout(**content["layout"]), content["kl"], content["outage"]
            if saved == layout:
                surplus = unpacked(content["surplus"])
            held: Any = send_to_device(content["micro_batches"], device)
            micro_batches = held
            if saved == layout:
                micro_step = content["micro_step"]
            elif micro_batches is not None:
                cut = saved
        if cut is not layout:
            changed = (name for name, value in asdict(cut).items() if value != getattr(layout, name))
            changes = ", ".join(f"{name} was {getattr(cut, name)}" for name in changed)
            raise UserError(
                f"resume_from_checkpoint: {checkpoint} lies inside a generation batch, which another layout cannot go "
                f"on with ({changes}): keep the layout, or name a checkpoint between two batches"
            )
        if micro_batches is None and micro_step % layout.generate_every:
            raise UserError(
                f"resume_from_checkpoint: {checkpoint} lies inside a generation batch and does not hold it: name one "
                f"after a multiple of {layout.generate_every} micro-batches "
                f"({layout.gradient_accumulation_steps} a step)"
            )
        return cls(micro_step, micro_batches, kl, surplus, outage)


def _file(checkpoint: Path, rank: int) -> Path:
    return checkpoint / f"generation_batch_{rank}.pt"
