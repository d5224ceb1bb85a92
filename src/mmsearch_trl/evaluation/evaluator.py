"""Evaluation: every row rolled out once, exact means over all ranks, every row saved.

How a row is sampled depends on the seed, the evaluation's name and the row's number alone: neither how rows are dealt
to ranks, nor what runs beside them, changes a result.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmsearch_trl.core.reward import RewardParts, ScoredTrajectory
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.engine.base import TimedEngine
from mmsearch_trl.evaluation.metrics import EvaluationSummary, summarize
from mmsearch_trl.evaluation.report import save_rows
from mmsearch_trl.rollout.rollouter import Rollouter
from mmsearch_trl.traces.files import TraceWriter, trace_path
from mmsearch_trl.traces.rows import EvaluationRow, evaluation_row


Row = dict[str, Any]
Scorer = Callable[[Sequence[Row], Sequence[Trajectory]], list[ScoredTrajectory]]
Result = tuple[int, EvaluationRow, Trajectory, RewardParts]
"""Row number, saved row, the trajectory without its images, its score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOptions:
    """How rows are evaluated.

    Attributes:
        folder: Of the run; rows go to `evaluation/`, traces to `traces/`.
        temperature: 0 is greedy.
        batch_size: Rows that one rank rolls out at a time.
    """

    folder: Path
    temperature: float
    seed: int
    batch_size: int
    save_traces: bool

    @classmethod
    def of(cls, args: Any) -> "EvaluationOptions":
        """From training arguments."""
        return cls(
            folder=Path(str(args.output_dir)),
            temperature=args.eval_temperature,
            seed=args.seed,
            batch_size=args.per_device_eval_batch_size,
            save_traces=args.save_traces,
        )


class Evaluator:
    """Rolls out and scores the rows of data sets."""

    def __init__(self, rollouter: Rollouter, score: Scorer, ranks: Ranks, options: EvaluationOptions) -> None:
        self._rollouter = rollouter
        self._score = score
        self._ranks = ranks
        self._options = options

    def run(
        self, name: str, rows: Sequence[Row], to_task: Callable[[Row], Task], engine: TimedEngine, step: int
    ) -> EvaluationSummary:
        """Evaluate one data set; every rank must call it.

        Args:
            name: Of the evaluation, in files and traces.
            step: Optimizer steps taken.
        """
        ranks, options = self._ranks, self._options
        size, results = options.batch_size, []
        tokenizer = self._rollouter.protocol.chat.tokenizer
        with TraceWriter(trace_path(options.folder, name, ranks.index), tokenizer) as traces:
            # Every rank rolls out as many batches as the others; surplus rows are dropped.
            for first in range(0, len(rows), size * ranks.count):
                numbers = [first + ranks.index * size + i for i in range(size)]
                batch = [dict(rows[number % len(rows)]) for number in numbers]
                names = [f"{options.seed}/{name}/{number}" for number in numbers]
                report = self._rollouter.run([to_task(row) for row in batch], engine, names, options.temperature)
                scored = self._score(batch, report.trajectories)
                own = [(n, item) for n, item in zip(numbers, scored, strict=True) if n < len(rows)]
                if options.save_traces:
                    traces.write([item for _, item in own], step=step, split=name)
                results += [
                    (n, evaluation_row(item, tokenizer, step=step), without_images(item.trajectory), item.parts)
                    for n, item in own
                ]
        results = sorted(ranks.gather_objects(results), key=lambda result: result[0])
        if ranks.is_main:
            saved = [row for _, row, _, _ in results]
            save_rows(saved, options.folder / "evaluation" / f"{name}_step{step}_{len(saved)}.json")
        return summarize(
            [trajectory for _, _, trajectory, _ in results],
            [parts for _, _, _, parts in results],
            max_searches=max(self._rollouter.limits.max_turns - 1, 1),
        )


def without_images(trajectory: Trajectory) -> Trajectory:
    """What means are made of, cheap to keep and to send: no image, no message, no hit."""
    turns = [
        replace(turn, reply=(), observation=turn.observation and replace(turn.observation, hits=()))
        for turn in trajectory.turns
    ]
    return replace(trajectory, task=replace(trajectory.task, images=(), extra={}), prompt=(), turns=turns)
