"""Rollouts with the trainer's current weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from trl.extras.profiling import profiling_context

from mmsearch_trl.core.completion import SamplingParams
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.engine.base import Engine
from mmsearch_trl.engine.pressure import PressureSource
from mmsearch_trl.rollout.admission import Admission
from mmsearch_trl.rollout.compat import cut_response
from mmsearch_trl.rollout.loop import named_sampling, run_batch
from mmsearch_trl.rollout.stragglers import Unfinished
from mmsearch_trl.trainer.metrics import rollout_metrics
from mmsearch_trl.trainer.search_calls import SearchCalls, end_if_search_is_gone


if TYPE_CHECKING:
    from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer


def samplings(trainer: MMSearchGRPOTrainer, seeds: Sequence[str], temperature: float) -> list[SamplingParams]:
    """How each task is sampled.

    Args:
        seeds: One name per task; the same name gives the same trajectory under the same weights.
    """
    return [named_sampling(trainer.limits, f"{trainer.args.seed}/{seed}", temperature) for seed in seeds]


def roll_out(
    trainer: MMSearchGRPOTrainer,
    tasks: Sequence[Task],
    samplings: Sequence[SamplingParams],
    *,
    close_share: float = 1.0,
    carried: Sequence[Unfinished] = (),
) -> list[Trajectory]:
    """Roll out tasks on this rank; metrics go to the log of the trainer's current mode.

    Every rank must call it equally often: it gathers metrics.

    Args:
        close_share: As for `run_batch`.
        carried: As for `run_batch`.
    """
    limits = trainer.limits
    started = time.perf_counter()
    trainer.search.drain_records()
    with profiling_context(trainer, "rollout"), trainer.rollout_engine.open() as engine:
        busy_before = engine.busy_seconds
        admission = _admission(trainer, engine)
        trajectories = trainer.event_loop.run(
            run_batch(
                tasks,
                engine,
                trainer.protocol,
                trainer.search,
                limits,
                samplings,
                admission=admission,
                close_share=close_share,
                carried=carried,
            )
        )
    if limits.compat:
        chat = trainer.protocol.chat
        trajectories = [cut_response(t, limits.max_response_tokens, chat) for t in trajectories]
    metrics = rollout_metrics(
        trajectories,
        seconds=time.perf_counter() - started,
        engine_busy_seconds=engine.busy_seconds - busy_before,
        gather=trainer.accelerator.gather,
        device=trainer.accelerator.device,
    )
    calls = SearchCalls.gather(trainer.search.drain_records(), trainer.accelerator.gather, trainer.accelerator.device)
    metrics |= calls.metrics()
    end_if_search_is_gone(trainer, calls)
    if admission is not None:
        lowest = torch.tensor([admission.lowest_cap], device=trainer.accelerator.device)
        metrics["rollout/cap_min"] = float(trainer.accelerator.gather(lowest).min())
    trainer.append_metrics(metrics)
    return trajectories


def _admission(trainer: MMSearchGRPOTrainer, engine: Engine) -> Admission | None:
    """The gate of one batch, with the cap that the batches before have led to."""
    if trainer.backpressure is None:
        return None
    return Admission(trainer.backpressure, engine if isinstance(engine, PressureSource) else None)
