"""Evaluate a model: `python -m mmsearch_trl.evaluate --config RECIPE [--model_name_or_path MODEL] [--key value ...]`.

Takes the recipe that the model was trained with; the training data are not looked at. Decoding is greedy unless
`eval_temperature` says otherwise. MODEL may be a LoRA adapter. All data are read once before the model is loaded, so
that a bad row does not end the work half-way. What it leaves:

    <output_dir>/evaluation/<data>_<rows>.json     every row, in MMSearch-R1's fields and ours
    <output_dir>/evaluation/summary.json           means with intervals, by data source, category and search
    <output_dir>/evaluation/traces/                the trajectories: `mmsearch view <output_dir>/evaluation`
"""

import asyncio
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from tqdm.auto import tqdm

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.errors import EngineError, UserError
from mmsearch_trl.core.reward import ScoredTrajectory
from mmsearch_trl.core.script import run_script
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import StopReason
from mmsearch_trl.data.tasks import read_tasks
from mmsearch_trl.engine.transformers import TransformersEngine
from mmsearch_trl.evaluation.evaluator import without_images
from mmsearch_trl.evaluation.metrics import EvaluationSummary, GroupSummary, summarize
from mmsearch_trl.evaluation.report import save_rows, summary_table
from mmsearch_trl.evaluation.rollouts import evaluate_tasks
from mmsearch_trl.protocol.base import TurnProtocol
from mmsearch_trl.recipe.build import build_engine, build_protocol, load_agent, load_processor
from mmsearch_trl.recipe.command_line import recipe_arguments
from mmsearch_trl.recipe.recipe import Recipe, load_recipe
from mmsearch_trl.search.calls.totals import SearchTotals, summary_lines
from mmsearch_trl.search.factory import build_runtime
from mmsearch_trl.search.runtime import SearchRuntime
from mmsearch_trl.traces.files import TraceWriter, trace_path
from mmsearch_trl.traces.rows import EvaluationRow, evaluation_row
from mmsearch_trl.trainer.config import MMSearchGRPOConfig


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """What `summary.json` holds.

    Attributes:
        seconds: Without loading.
        data: By the name of the data file.
        searches: What the searches of all files came to, by tool.
    """

    model: str
    recipe: str
    temperature: float
    seed: int
    seconds: float
    data: Mapping[str, EvaluationSummary]
    searches: Mapping[ActionKind, SearchTotals]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Agent:
    """What rolls out."""

    engine: TransformersEngine
    protocol: TurnProtocol
    search: SearchRuntime


def main(config: Path, overrides: Mapping[str, Any]) -> None:
    """Evaluate by a recipe and print what came of it; `overrides` replace its values, by dotted key."""
    recipe = load_recipe(config, overrides)
    recipe.validate(evaluation=True)
    report = evaluate(recipe)
    console = Console()
    for name, summary in report.data.items():
        console.print(summary_table(_groups(summary), title=name))
    for line in summary_lines(report.searches):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"rows and summary: {_folder(recipe)}", highlight=False, soft_wrap=True)


def evaluate(recipe: Recipe) -> EvaluationReport:
    """Carry out the evaluation of a recipe that was validated.

    Raises:
        UserError: a data file, or a row of it, cannot be used; or it was launched on several processes.
        EngineError: no rollout of a file could be finished.
    """
    args = recipe.trainer
    assert isinstance(args, MMSearchGRPOConfig)
    if PartialState().num_processes > 1:
        raise UserError("evaluation runs in one process: start it without `accelerate launch`")
    search = build_runtime(recipe.search)
    protocol = build_protocol(recipe, load_processor(recipe.model))
    rows = {Path(file).stem: _fitting_rows(recipe, file, protocol) for file in recipe.data.eval_files}
    model = load_agent(recipe.model).eval()
    model.to(args.device)  # pyright: ignore[reportArgumentType]  (transformers wraps `to` without its type)
    engine = build_engine(model, protocol.chat, max_batch=args.max_rollout_batch)
    agent = _Agent(engine=engine, protocol=protocol, search=search)
    started = time.perf_counter()
    try:
        data = asyncio.run(_evaluate_files(recipe, agent, rows))
    finally:
        engine.close()
        search.close()
    report = EvaluationReport(
        model=str(recipe.model.model_name_or_path),
        recipe=str(recipe.path),
        temperature=args.eval_temperature,
        seed=args.seed,
        seconds=round(time.perf_counter() - started, 1),
        data=data,
        searches=search.totals,
    )
    (_folder(recipe) / "summary.json").write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")
    return report


def _fitting_rows(recipe: Recipe, file: str, protocol: TurnProtocol) -> list[int]:
    """Read a file to its end; the numbers of the tasks whose prompt is not too long."""
    limit = recipe.data.max_prompt_length
    fitting, count = [], 0
    for number, task in enumerate(tqdm(_tasks(recipe, file), desc=f"Checking {Path(file).name}", unit="row")):
        count += 1
        if task.images and not protocol.chat.sees_images:
            raise UserError(f"{file}: question {task.id} has an image, and the model is a language model")
        if limit is None or len(protocol.prompt(task).token_ids) <= limit:
            fitting.append(number)
    if not fitting:
        raise UserError(f"{file}: none of {count} rows can be evaluated (max_prompt_length is {limit})")
    if len(fitting) < count:
        logger.warning("%s: left out %d of %d rows: prompt over %d tokens", file, count - len(fitting), count, limit)
    return fitting


def _tasks(recipe: Recipe, file: str) -> Iterator[Task]:
    return read_tasks(file, on_error=recipe.data.on_bad_row, resize=recipe.data.resize_images)


async def _evaluate_files(
    recipe: Recipe, agent: _Agent, rows: Mapping[str, Sequence[int]]
) -> dict[str, EvaluationSummary]:
    names = {Path(file).stem: file for file in recipe.data.eval_files}
    try:
        return {name: await _evaluate_file(recipe, agent, file, rows[name]) for name, file in names.items()}
    finally:
        await agent.search.disconnect()


async def _evaluate_file(recipe: Recipe, agent: _Agent, file: str, rows: Sequence[int]) -> EvaluationSummary:
    """Roll out one file, a few batches at a time; what is kept of a trajectory in memory is without images."""
    args = recipe.trainer
    assert isinstance(args, MMSearchGRPOConfig)
    name, tokenizer = Path(file).stem, agent.protocol.chat.tokenizer
    fitting = frozenset(rows)
    tasks = (task for number, task in enumerate(_tasks(recipe, file)) if number in fitting)
    saved: list[EvaluationRow] = []
    kept: list[ScoredTrajectory] = []
    path = trace_path(_folder(recipe), name)
    path.unlink(missing_ok=True)
    with TraceWriter(path, tokenizer) as traces, tqdm(total=len(rows), desc=name, unit="task") as bar:
        for chunk in _chunks(tasks, args.max_rollout_batch):
            scored = await evaluate_tasks(
                chunk,
                agent.engine,
                agent.protocol,
                agent.search,
                recipe.rollout,
                recipe.reward,
                temperature=args.eval_temperature,
                seed=args.seed,
            )
            traces.write(scored, step=0, split=name)
            saved += [evaluation_row(item, tokenizer, step=0) for item in scored]
            kept += [_without_images(item) for item in scored]
            bar.update(len(chunk))
    _check_finished(name, kept)
    save_rows(saved, _folder(recipe) / f"{name}_{len(saved)}.json")
    parts = [item.parts for item in kept]
    max_searches = max(recipe.rollout.max_turns - 1, 1)
    return summarize([item.trajectory for item in kept], parts, max_searches=max_searches)


def _check_finished(name: str, scored: Sequence[ScoredTrajectory]) -> None:
    """Refuse to report 0 % of a model that never got to answer.

    Raises:
        EngineError: no rollout could be finished; says why the first could not.
    """
    failures = [item.trajectory.failure for item in scored if item.trajectory.stop is StopReason.FAILED]
    if len(failures) == len(scored) and failures[0] is not None:
        raise EngineError(
            f"{name}: none of {len(scored)} rollouts could be finished; the first: {failures[0].message}"
        )


def _chunks(tasks: Iterator[Task], size: int) -> Iterator[list[Task]]:
    while chunk := list(islice(tasks, size)):
        yield chunk


def _without_images(scored: ScoredTrajectory) -> ScoredTrajectory:
    return replace(scored, trajectory=without_images(scored.trajectory))


def _folder(recipe: Recipe) -> Path:
    return Path(str(recipe.trainer.output_dir)) / "evaluation"


def _groups(summary: EvaluationSummary) -> dict[str, GroupSummary]:
    """The lines of the table; a division into a single group would only repeat the first."""
    groups = {"all": summary.overall}
    for part in (summary.by_source, summary.by_category, summary.by_search):
        groups |= part if len(part) > 1 else {}
    return groups


if __name__ == "__main__":
    sys.exit(run_script(lambda: main(*recipe_arguments())))
