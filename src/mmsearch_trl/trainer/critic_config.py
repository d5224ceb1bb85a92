"""The `critic:` section of a recipe: the value model of PPO, and how it is fitted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from mmsearch_trl.core.errors import UserError


CriticModel = Literal["full", "adapter"]

_COSINE = "cosine_with_min_lr"


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticConfig:
    """Defaults are those of LMM-R1.

    Raises:
        UserError: a value is out of range.
    """

    model: CriticModel = field(
        default="full",
        metadata={
            "help": "full: a copy of the starting model, trained whole, in float32. adapter: an adapter like the "
            "policy's own on the same frozen weights, which takes next to no memory; for LoRA policies."
        },
    )
    learning_rate: float = field(default=9e-6, metadata={"help": "Of the critic's AdamW."})
    lr_scheduler_type: str = field(
        default=_COSINE, metadata={"help": "A schedule of transformers, over all updates of the critic."}
    )
    lr_scheduler_kwargs: dict[str, Any] | None = field(
        default=None, metadata={"help": f"Its arguments; default under {_COSINE}: {{min_lr_rate: 0.1}}."}
    )
    warmup_steps: float = field(
        default=0.03, metadata={"help": "Of the learning rate: updates, or below 1 a share of all updates."}
    )
    adam_beta1: float = field(default=0.9, metadata={"help": "Of AdamW."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Of AdamW."})
    weight_decay: float = field(default=0.0, metadata={"help": "Of AdamW."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are scaled down to it; 0 for never."})
    value_clip: float | None = field(
        default=0.2,
        metadata={"help": "How far a value may profit from moving within one batch of rollouts. None: any distance."},
    )
    epochs: int = field(default=1, metadata={"help": "Passes over each batch of rollouts."})
    batch_size: int | None = field(
        default=None,
        metadata={"help": "Rollouts of an update, over all processes; default: as many as one of the policy's takes."},
    )
    warmup_batches: int = field(
        default=0,
        metadata={"help": "Batches of rollouts, at first, that the critic alone is fitted to; the policy rests."},
    )

    def __post_init__(self) -> None:
        if self.model not in get_args(CriticModel):
            raise UserError(f"critic.model must be {' or '.join(get_args(CriticModel))}, got {self.model!r}")
        for name in ("learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "warmup_batches"):
            if not getattr(self, name) >= 0:
                raise UserError(f"critic.{name} must be at least 0, got {getattr(self, name)!r}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"critic.{name} must be at least 1, got {getattr(self, name)!r}")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"critic.{name} must be from 0 to below 1, got {getattr(self, name)!r}")
        if self.value_clip is not None and not self.value_clip > 0:
            raise UserError(f"critic.value_clip must be above 0, or null for no bound; got {self.value_clip!r}")

    @property
    def scheduler_arguments(self) -> Mapping[str, Any]:
        if self.lr_scheduler_kwargs is None and self.lr_scheduler_type == _COSINE:
            return {"min_lr_rate": 0.1}
        return self.lr_scheduler_kwargs or {}


def check_critic(args: Any) -> None:
    """Refuse a critic that nothing asks, and what can train one model alone; before any is loaded.

    Raises:
        UserError: the message says what to do.
    """
    if args.critic is None:
        return
    if args.estimator is None or args.estimator.name != "gae":
        raise UserError("critic is asked by estimator.name gae alone: set that, or take the section out")
    if args.deepspeed_plugin is not None:
        raise UserError(
            "critic: DeepSpeed trains one model a process, and a critic is a second one: use FSDP2 "
            "(accelerate_configs/fsdp2.yaml) or DDP, or an estimator without a critic"
        )
    if args.fp16:
        raise UserError("critic: fp16 scales the loss of one model, and a critic is a second one: set bf16 instead")
