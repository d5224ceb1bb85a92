"""GiB of one GPU that a run takes, computed from its model's shape; docs/hardware.md has the arithmetic in words.

A weight that is trained costs, besides itself, its gradient and what the optimizer keeps. DeepSpeed holds bfloat16
weights and gradients, and float32 masters beside the optimizer's states; without it weights and gradients are of the
recipe's `dtype`, and there are no masters.
"""

import os
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from transformers import TrainingArguments

from mmsearch_trl.recipe.model_shape import Layers, ModelShape
from mmsearch_trl.recipe.recipe import Recipe
from mmsearch_trl.recipe.schedule import plain
from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.trainer.critic_config import CriticModel
from mmsearch_trl.trainer.sft import MMSearchSFTConfig


GIB = 1 << 30
_HALF, _MASTER = 2, 4
_CRITIC = 16
"""Bytes of a critic's weight in float32, its gradient, and AdamW's two states."""
_PICTURE = 2 * 672 * 672
"""Pixels of the largest picture under `resize_images`."""


class Sharding(StrEnum):
    """How processes share a model, by the configurations that are shipped."""

    NONE = "one, or ddp"
    ZERO2 = "zero2"
    ZERO3 = "zero3"
    ZERO3_OFFLOAD = "zero3 + CPU"
    FSDP2 = "fsdp2"

    @property
    def of_deepspeed(self) -> bool:
        return self.value.startswith("zero")


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a recipe asks of memory beside its model's shape.

    Attributes:
        states: Values that the optimizer keeps for a weight: 2 of Adam.
        state_bytes: Of one, or None for as many as the weight has.
        reference: A second copy of the weights is held, where no adapter is trained.
        rows, tokens: Of a micro-batch; `tokens` of its longest row, None where the recipe does not bound it.
        pixels: Of the largest picture of a row, None where the recipe does not bound it.
        rollouts: That the trained model writes together; 0 where vLLM writes them.
        critic: What is trained beside it.
    """

    states: float
    state_bytes: int | None
    reference: bool
    checkpointing: bool
    compute_bytes: int
    rows: int
    tokens: int | None
    pixels: int | None
    rollouts: int
    critic: CriticModel | None = None

    @classmethod
    def of(cls, recipe: Recipe, *, bf16: bool) -> "Demand":
        """
        Args:
            bf16: The recipe's key, which is off where a recipe for a GPU is read without one.
        """
        args = recipe.trainer
        grpo = isinstance(args, MMSearchGRPOConfig)
        states, state_bytes = optimizer_states(args)
        return cls(
            states=states,
            state_bytes=state_bytes,
            reference=isinstance(args, MMSearchGRPOConfig) and args.beta != 0.0,
            checkpointing=bool(args.gradient_checkpointing),
            compute_bytes=_HALF if bf16 or recipe.model.dtype in ("bfloat16", "float16") else 4,
            rows=args.per_device_train_batch_size,
            tokens=_longest(recipe),
            pixels=_PICTURE if recipe.data.resize_images else None,
            rollouts=args.max_rollout_batch if grpo and not args.use_vllm else 0,  # pyright: ignore[reportAttributeAccessIssue]
            critic=args.critic.model if isinstance(args, MMSearchGRPOConfig) and args.critic is not None else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """GiB of one GPU.

    Attributes:
        activations, vision: Of a micro-batch: of the language model, and of the vision tower; 0 where not bounded.
        gathered, cache: While rollouts are written: whole weights beside the shards, keys and values.
        host: Of the CPU's memory, for one process.
        critic: Its weights, gradients and optimizer.
    """

    weights: float
    gradients: float
    optimizer: float
    reference: float
    activations: float
    vision: float
    gathered: float
    cache: float
    host: float = 0.0
    critic: float = 0.0

    @property
    def states(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.reference + self.critic

    @property
    def training(self) -> float:
        return self.states + self.activations + self.vision

    @property
    def rollout(self) -> float:
        return self.weights + self.optimizer + self.reference + self.critic + self.gathered + self.cache


def memory_of(shape: ModelShape, demand: Demand, sharding: Sharding, processes: int) -> Memory:
    """
    Args:
        processes: That share the model, where it is shared at all.
    """
    whole = sharding in (Sharding.NONE, Sharding.ZERO2)
    spread = 1 if whole else processes
    partly = processes if sharding.of_deepspeed else spread  # gradients and optimizer
    trained, frozen = shape.trained, shape.frozen
    learning = trained.count * _HALF if sharding.of_deepspeed else trained.bytes
    kept = min(frozen.bytes, frozen.count * _HALF) if sharding.of_deepspeed else frozen.bytes
    width = trained.bytes / max(trained.count, 1)
    states = trained.count * demand.states * (demand.state_bytes or (_MASTER if sharding.of_deepspeed else width))
    states += trained.count * _MASTER if sharding.of_deepspeed else 0
    copied = shape.base.count * _HALF if sharding.of_deepspeed else shape.base.bytes
    offloaded = sharding is Sharding.ZERO3_OFFLOAD
    activations = demand.rows * (demand.tokens or 0) * _per_token(shape.language, demand)
    vision = demand.rows * _per_picture(shape.vision, demand.pixels or 0, demand.compute_bytes)
    return Memory(
        weights=(learning + kept) / spread / GIB,
        gradients=learning / partly / GIB,
        optimizer=0.0 if offloaded else states / partly / GIB,
        reference=copied / spread / GIB if demand.reference and not shape.adapter else 0.0,
        activations=activations / GIB,
        vision=vision / GIB,
        gathered=0.0 if whole or not demand.rollouts else shape.parameters * demand.compute_bytes / GIB,
        cache=demand.rollouts * (demand.tokens or 0) * key_value_bytes(shape.language, demand.compute_bytes) / GIB,
        host=states / partly / GIB if offloaded else 0.0,
        critic=_critic_weights(shape, demand.critic) * _CRITIC / spread / GIB,
    )


def _critic_weights(shape: ModelShape, critic: CriticModel | None) -> int:
    """How many are trained: those of a copy of the model, or of one more adapter."""
    return {None: 0, "full": shape.base.count, "adapter": shape.trained.count}[critic]


def optimizer_states(args: TrainingArguments) -> tuple[float, int | None]:
    """Values that an optimizer keeps for a weight, and the bytes of one; None for those of the weight."""
    name = plain(args.optim)
    if any(part in name for part in ("sgd", "adafactor", "apollo", "galore")):
        return 0.0, None
    return (1.0 if any(part in name for part in ("lion", "rmsprop", "adagrad")) else 2.0), (
        1 if "8bit" in name else None
    )


def key_value_bytes(language: Layers, each: int = _HALF) -> int:
    """Of a token in the cache."""
    return 2 * language.caching * language.key_values * each


def memory_here() -> tuple[float, str]:
    """GiB of the device that a process would train on, and what it is."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory / GIB, "this GPU"
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, "this machine"


def _longest(recipe: Recipe) -> int | None:
    """Tokens of the longest row that a recipe allows; its prompt counts where the recipe bounds it."""
    args: Any = recipe.trainer
    if isinstance(args, MMSearchSFTConfig):
        return args.max_length if "max_length" in recipe.values else None
    return recipe.rollout.max_response_tokens + (recipe.data.max_prompt_length or 0)


def _per_token(language: Layers, demand: Demand) -> int:
    """Bytes of activations: with checkpointing a vector a layer is kept, and one layer is computed at a time again."""
    layer = demand.compute_bytes * (4 * language.mlp + 10 * language.width)
    if not demand.checkpointing:
        return language.depth * layer
    return demand.compute_bytes * language.depth * language.width + layer


def _per_picture(vision: Layers | None, pixels: int, each: int) -> int:
    return 0 if vision is None else each * vision.depth * vision.width * (pixels // vision.patch**2)
