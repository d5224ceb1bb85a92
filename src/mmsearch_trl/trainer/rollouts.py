"""Rollouts with the trainer's current weights."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from trl.extras.profiling import profiling_context
from trl.models import unwrap_model_for_generation

from mmsearch_trl.data.task import Task
from mmsearch_trl.engine.sharding import gathered
from mmsearch_trl.engine.transformers import TransformersEngine
from mmsearch_trl.rollout.compat import cut_response
from mmsearch_trl.rollout.loop import named_sampling, run_batch
from mmsearch_trl.rollout.trajectory import Trajectory
from mmsearch_trl.trainer.metrics import rollout_metrics


if TYPE_CHECKING:
    from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer


def roll_out(
    trainer: MMSearchGRPOTrainer, tasks: Sequence[Task], seeds: Sequence[str], temperature: float
) -> list[Trajectory]:
    """Roll out tasks on this rank; metrics go to the log of the trainer's current mode.

    Every rank must call it equally often: it gathers metrics.

    Args:
        seeds: One name per task; the same name gives the same trajectory under the same weights.
    """
    limits = trainer.limits
    samplings = [named_sampling(limits, f"{trainer.args.seed}/{seed}", temperature) for seed in seeds]
    started = time.perf_counter()
    trainer.search.drain_records()
    with _engine(trainer) as engine:
        trajectories = trainer.event_loop.run(
            run_batch(tasks, engine, trainer.protocol, trainer.search, limits, samplings)
        )
    if limits.compat:
        chat = trainer.protocol.chat
        trajectories = [cut_response(t, limits.max_response_tokens, chat) for t in trajectories]
    metrics = rollout_metrics(
        trajectories,
        trainer.search.drain_records(),
        seconds=time.perf_counter() - started,
        engine_busy_seconds=engine.busy_seconds,
        gather=trainer.accelerator.gather,
        device=trainer.accelerator.device,
    )
    trainer.append_metrics(metrics)
    return trajectories


@contextmanager
def _engine(trainer: MMSearchGRPOTrainer) -> Iterator[TransformersEngine]:
    """The transformers engine over the unwrapped model, with sharded weights gathered as TRL's own generation does."""
    chat, args = trainer.protocol.chat, trainer.args
    checkpointing: Any = args.gradient_checkpointing_kwargs
    with (
        profiling_context(trainer, "rollout"),
        unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=checkpointing,
        ) as model,
        torch.no_grad(),
        trainer._dist.summon_full_params(trainer.model_wrapped, recurse=False),
        gathered(model),
    ):
        engine = TransformersEngine(
            model,
            chat.images,
            stop_ids={*trainer.eos_token_ids, chat.turn_end_id},
            forbidden_ids=chat.vision_ids,
            image_pad_id=chat.image_pad_id,
            pad_id=chat.tokenizer.pad_token_id,
            vocabulary_size=chat.vocabulary_size,
            max_batch=args.max_rollout_batch,
        )
        try:
            yield engine
        finally:
            engine.close()
