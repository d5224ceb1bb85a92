"""Evaluation: every row rolled out once, exact means over all ranks, every row saved.

* How a row is sampled depends on the seed, the evaluation's name and the row's number alone: neither how rows are
  dealt to ranks, nor the engine, nor what runs beside them, changes a result.
* A trajectory is scored and written when it ends, and its place is taken by the next row.
* An interrupted evaluation goes on where it stopped, with any number of processes (`parts.py`).
* No trajectory and no row is kept in memory; the summary is made of the lines on disk.
* Where the engine, or searches, cannot work, it ends with the first reason (`rollout/outage.py`), and who goes on
  with it evaluates again the rows that this spoiled.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from mmsearch_trl.core.errors import EngineLost, SearchLost, UserError
from mmsearch_trl.core.reward import ScoredTrajectory
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.engine.base import TimedEngine
from mmsearch_trl.evaluation.measures import Measures
from mmsearch_trl.evaluation.parts import Part, Parts, PartWriter
from mmsearch_trl.evaluation.report import save_rows
from mmsearch_trl.evaluation.summarizer import Summarizer
from mmsearch_trl.evaluation.summary import EvaluationSummary
from mmsearch_trl.rollout.outage import OutageMonitor, Tally
from mmsearch_trl.rollout.rollouter import Rollouter
from mmsearch_trl.rollout.stream import Ended, Job
from mmsearch_trl.traces.files import TraceWriter, trace_path
from mmsearch_trl.traces.rows import evaluation_row


Row = dict[str, Any]
Scorer = Callable[[Sequence[Row], Sequence[Trajectory]], list[ScoredTrajectory]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What is evaluated.

    Attributes:
        name: Rows are sampled by it and their numbers.
        split: Its name in traces.
        step: Optimizer steps taken.
        weights: Digest of this rank's weights.
        settings: What else its rows depend on, and the evaluator does not know; for a digest, and written nowhere.
        rows_file: Where the rows go; what is under way lies beside it.
    """

    name: str
    split: str
    step: int
    weights: str
    rows_file: Path
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOptions:
    """How rows are evaluated.

    Attributes:
        run_dir: Traces go to `traces/` in it.
        temperature: 0 is greedy.
        places: Trajectories that one rank has in flight at a time.
        outage: Makes what ends an evaluation that cannot work.
        progress: Show a bar.
    """

    run_dir: Path
    temperature: float
    seed: int
    places: int
    save_traces: bool
    outage: Callable[[], OutageMonitor]
    progress: bool = False


class Evaluator:
    """Rolls out and scores the rows of data sets."""

    def __init__(self, rollouter: Rollouter, score: Scorer, ranks: Ranks, options: EvaluationOptions) -> None:
        self._rollouter = rollouter
        self._score = score
        self._ranks = ranks
        self._options = options

    def run(
        self, evaluation: Evaluation, rows: Sequence[Row], to_task: Callable[[Row], Task], engine: TimedEngine
    ) -> EvaluationSummary:
        """Evaluate one data set; every rank must call it.

        Raises:
            UserError: there is no row.
            EngineLost, SearchLost: rollouts, or searches, fail and will go on failing; on all ranks alike.
        """
        ranks, options, split = self._ranks, self._options, evaluation.split
        if not len(rows):
            raise UserError(f"{split}: there is no row to evaluate")
        parts = Parts(
            evaluation.rows_file.parent / f"{split}.parts", self._header(evaluation, rows, to_task), len(rows), ranks
        )
        done = parts.open(options.run_dir, split, evaluation.step)
        # What is left is dealt, and not all rows: of an interrupted evaluation it may be one rank's share.
        undone = (number for number, finished in enumerate(done) if not finished)
        left = islice(undone, ranks.index, None, ranks.count)
        total = len(range(ranks.index, done.count(0), ranks.count))
        jobs = (Job(n, to_task(dict(rows[n])), f"{options.seed}/{evaluation.name}/{n}") for n in left)
        stream = self._rollouter.stream(jobs, engine, options.temperature, options.places, proven=any(done))
        tokenizer = self._rollouter.protocol.chat.tokenizer
        monitor, tally, lost = options.outage(), Tally(), None
        with (
            TraceWriter(trace_path(options.run_dir, split, ranks.index), tokenizer) as traces,
            parts.writer(traces.size) as writer,
            closing(stream),
            tqdm(total=total, desc=split, unit="task", disable=not (options.progress and ranks.is_main)) as bar,
        ):
            for ended in stream:
                for number, scored in self._scored(ended, rows):
                    if options.save_traces:
                        traces.write([scored], step=evaluation.step, split=split)
                    row = evaluation_row(scored, tokenizer, step=evaluation.step).as_dict()
                    measures = Measures.of(scored.trajectory, scored.parts)
                    part = Part(number=number, row=row, measures=measures, traces_size=traces.size)
                    writer.write_row(part.to_line(), spoiled=Tally.of([scored.trajectory]).spoiled)
                bar.update(len(ended))
                batch = Tally.of([trajectory for _, trajectory in ended])
                tally += batch
                if (lost := monitor.lost(batch)) is not None:
                    break
            self._end_alike(lost, tally, writer)
        parts.gather()
        summary = ranks.on_main(lambda: self._finish(parts.in_order(), evaluation.rows_file))
        parts.remove()
        return summary

    def _end_alike(self, lost: EngineLost | SearchLost | None, tally: Tally, writer: PartWriter) -> None:
        """Raise on every rank what one of them, or all of them together, found."""
        found = self._ranks.gather_objects([(lost, tally)])
        together = self._options.outage()
        whole = together.lost(sum((each for _, each in found), Tally())) or together.lost_at_end()
        first = next((each for each, _ in found if each is not None), whole)
        if first is not None:
            writer.cut_spoiled()
            raise first

    def _header(self, evaluation: Evaluation, rows: Sequence[Row], to_task: Callable[[Row], Task]) -> str:
        """Digest of all that the rows of an evaluation depend on; the same on every rank, for any number of ranks."""
        rollouter, options = self._rollouter, self._options
        weights = sorted(set(self._ranks.gather_objects([evaluation.weights])))

        def digest() -> str:
            known = {
                "name": [evaluation.name, evaluation.split, evaluation.step],
                "weights": weights,
                "settings": evaluation.settings,
                "sampling": [options.seed, options.temperature, options.save_traces],
                "limits": asdict(rollouter.limits),
                "data": [len(rows), getattr(rows, "_fingerprint", None)],
                # Stands for the prompt, the chat template and the size of images.
                "prompt": rollouter.protocol.prompt(to_task(dict(rows[0]))).token_ids,
            }
            return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()

        return self._ranks.on_main(digest)

    def _scored(self, ended: Sequence[Ended], rows: Sequence[Row]) -> Iterator[tuple[int, ScoredTrajectory]]:
        """Those that ended together are scored together: a judge over the network is asked about all at once."""
        scored = self._score([dict(rows[job.number]) for job, _ in ended], [trajectory for _, trajectory in ended])
        for (job, _), item in zip(ended, scored, strict=True):
            yield job.number, item

    def _finish(self, parts: Iterable[Part], rows_file: Path) -> EvaluationSummary:
        """Write the rows in their order and sum them up on the way."""
        summarizer = Summarizer(max(self._rollouter.limits.max_turns - 1, 1), self._rollouter.tool_names)

        def rows() -> Iterator[Row]:
            for part in parts:
                summarizer.add(part.measures)
                yield part.row

        save_rows(rows(), rows_file)
        return summarizer.summary()
