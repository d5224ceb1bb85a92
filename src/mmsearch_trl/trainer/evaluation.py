"""Evaluation inside the trainer: every row rolled out once, exact means over all ranks, every row saved.

TRL's own evaluation samples at the training temperature, averages means of batches, and keeps the last batch only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.reward import RewardParts
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.data.dataset import row_to_task
from mmsearch_trl.evaluation.metrics import summarize
from mmsearch_trl.evaluation.report import save_rows
from mmsearch_trl.evaluation.rollouts import reward_parts, without_images
from mmsearch_trl.traces.files import TraceWriter, trace_path
from mmsearch_trl.traces.rows import EvaluationRow, evaluation_row
from mmsearch_trl.trainer.rollouts import roll_out, samplings


if TYPE_CHECKING:
    from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer

Result = tuple[int, EvaluationRow, Trajectory, RewardParts]
"""Row number, saved row, the trajectory without its images, its score."""


def evaluate(trainer: MMSearchGRPOTrainer, dataset: Any, prefix: str) -> dict[str, float]:
    """Evaluate a data set, or each of a mapping of them under `<prefix>_<name>`; returns the logged metrics.

    Raises:
        UserError: The trainer has no evaluation data.
    """
    if dataset is None:
        raise UserError("There is nothing to evaluate: pass eval_dataset to the trainer or to evaluate().")
    if isinstance(dataset, dict):
        metrics: dict[str, float] = {}
        for name, part in dataset.items():
            metrics |= evaluate(trainer, part, f"{prefix}_{name}")
        return metrics
    training = trainer.model.training
    trainer.model.eval()
    try:
        results = sorted(_all_ranks(trainer, dataset, prefix), key=lambda result: result[0])
        metrics = _metrics(trainer, results, prefix)
        trainer.log(metrics)
    finally:
        trainer.model.train(training)
    if trainer.accelerator.is_main_process:
        _save(trainer, [row for _, row, _, _ in results], prefix)
    trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
    return metrics


def _all_ranks(trainer: MMSearchGRPOTrainer, dataset: Any, prefix: str) -> list[Result]:
    """Roll out this rank's share, as many batches as every other rank, and gather; surplus rows are dropped."""
    world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
    size = trainer.args.per_device_eval_batch_size
    results: list[Result] = []
    path = trace_path(trainer.run_dir, prefix, rank)
    with TraceWriter(path, trainer.protocol.chat.tokenizer) as traces:
        for first in range(0, len(dataset), size * world):
            numbers = [first + rank * size + i for i in range(size)]
            batch = _batch(trainer, dataset, numbers, traces, prefix)
            results += [result for result in batch if result[0] < len(dataset)]
    return gather_object(results)


def _batch(
    trainer: MMSearchGRPOTrainer, dataset: Any, numbers: list[int], traces: TraceWriter, prefix: str
) -> list[Result]:
    rows = [dict(dataset[number % len(dataset)]) for number in numbers]
    tasks = [row_to_task(row, resize=trainer.resize_images) for row in rows]
    seeds = [f"{prefix}/{number}" for number in numbers]
    trajectories = roll_out(trainer, tasks, samplings(trainer, seeds, trainer.args.eval_temperature))
    scored = trainer.score(rows, trajectories)
    step = trainer.state.global_step
    own = [item for number, item in zip(numbers, scored, strict=True) if number < len(dataset)]
    if trainer.args.save_traces:
        traces.write(own, step=step, split=prefix)
    return [
        (
            number,
            evaluation_row(item, trainer.protocol.chat.tokenizer, step=step),
            without_images(item.trajectory),
            reward_parts(item),
        )
        for number, item in zip(numbers, scored, strict=True)
    ]


def _metrics(trainer: MMSearchGRPOTrainer, results: list[Result], prefix: str) -> dict[str, float]:
    summary = summarize(
        [trajectory for _, _, trajectory, _ in results],
        [parts for _, _, _, parts in results],
        max_searches=max(trainer.limits.max_turns - 1, 1),
    )
    return {f"{prefix}_{name}": value for name, value in summary.as_dict().items()}


def _save(trainer: MMSearchGRPOTrainer, rows: list[EvaluationRow], prefix: str) -> None:
    folder = trainer.run_dir / "evaluation"
    save_rows(rows, folder / f"{prefix}_step{trainer.state.global_step}_{len(rows)}.json")
