"""`mmsearch cache prefetch`: fills a cache of answers before a run.

What is cached already is not searched again, so a prefetch that was stopped goes on where it was.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm.auto import tqdm

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.errors import SearchLost, UserError
from mmsearch_trl.core.failure_monitor import FailureMonitor
from mmsearch_trl.core.json_lines import read_lines
from mmsearch_trl.core.observation import ImageQuery, Observation
from mmsearch_trl.core.task import Task
from mmsearch_trl.data.pixels import ModelPixels
from mmsearch_trl.data.questions import bare_question
from mmsearch_trl.data.tasks import read_tasks
from mmsearch_trl.rollout.background_loop import run_to_end
from mmsearch_trl.search.calls.totals import SearchTotals
from mmsearch_trl.search.factory import build_runtime
from mmsearch_trl.search.runtime import SearchRuntime


if TYPE_CHECKING:
    from mmsearch_trl.recipe.recipe import Recipe
    from mmsearch_trl.recipe.written import WrittenRecipe

QUESTIONS = "questions"
"""Stands for the questions of the recipe's data, where a file of queries could be named."""
_AT_ONCE = 256
"""Queries that are in memory, with their images."""
_MAX_FAILURE_SHARE = 0.2


class Prefetched(NamedTuple):
    """What came of the searches, by name, and their totals."""

    outcomes: Counter[str]
    totals: Mapping[ActionKind, SearchTotals]


def prefetch(recipe: "Recipe | WrittenRecipe", queries: str | None = None) -> Prefetched:
    """Look up the image of every question of a recipe, or text queries, so that a run finds the results cached.

    Args:
        queries: What text is searched for: the path of a file as `read_queries` takes it, or `QUESTIONS`.

    Raises:
        UserError: the recipe keeps no answers, or has no such search; or the file of queries cannot be used.
        SearchLost: searches are not answered.
    """
    if recipe.search.cache is None:
        raise UserError("search.cache is not set: there is nowhere to keep the answers")
    tool = ActionKind.IMAGE_SEARCH if queries is None else ActionKind.TEXT_SEARCH
    runtime = build_runtime(recipe.search)
    try:
        if not runtime.answers(tool):
            raise UserError(f"no {tool.replace('_', ' ')} is configured: there is nothing to look up")
        if queries is None:
            images = (query for task in _tasks(recipe) if (query := ImageQuery.of(task)) is not None)
            outcomes = run_to_end(_prefetch(runtime, runtime.image_search, images, "image"))
        else:
            questions = (task.question for task in _tasks(recipe))
            # Read to its end before anything is asked: a bad line does not end the work half-way.
            asked = questions if queries == QUESTIONS else list(read_queries(Path(queries)))
            outcomes = run_to_end(_prefetch(runtime, runtime.text_search, asked, "query"))
        return Prefetched(outcomes, runtime.totals)
    finally:
        runtime.close()


def read_queries(file: Path) -> Iterator[str]:
    """The queries of a file, one a line; of a `.jsonl` file, the `query` or else the `question` of each line's object.

    Raises:
        UserError: the file cannot be read, or a line of JSON holds no query; names file and line.
    """
    for line in read_lines(file):
        try:
            yield _query(line.object()) if file.suffix == ".jsonl" else line.text()
        except UserError as error:
            raise UserError(f"{file}, line {line.number}: {error}") from error


def _query(row: Mapping[str, Any]) -> str:
    asks = row.get("query") is None
    found = row.get("question") if asks else row["query"]
    if not isinstance(found, str) or not found.strip():
        raise UserError("holds neither a `query` nor a `question` that is text")
    return bare_question(found, 1) if asks else found


async def _prefetch(
    runtime: SearchRuntime,
    search: Callable[[Any], Coroutine[Any, Any, Observation]],
    queries: Iterable[Any],
    unit: str,
) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    monitor = FailureMonitor(_MAX_FAILURE_SHARE, window=_AT_ONCE)
    try:
        total = len(queries) if isinstance(queries, list) else None
        waiting = iter(queries)
        with tqdm(desc="Looking up", unit=unit, total=total) as bar:
            while chunk := list(islice(waiting, _AT_ONCE)):
                found = await asyncio.gather(*map(search, chunk))
                failures = [o.failure for o in found if o.failure is not None]
                outcomes.update(failure.kind.value for failure in failures)
                outcomes.update(
                    "cached before" if o.cached or o.coalesced else "looked up" for o in found if o.failure is None
                )
                bar.update(len(chunk))
                bar.set_postfix(dict(outcomes))
                counted = Counter(failure.kind for failure in failures if failure.infrastructure)
                if abort_reason := monitor.abort_reason(len(found), counted):
                    raise SearchLost(f"{abort_reason}; what was found is cached")
    finally:
        await runtime.disconnect()
    return outcomes


def _tasks(recipe: "Recipe | WrittenRecipe") -> Iterator[Task]:
    data, pixels = recipe.data, None
    if data.min_pixels is not None or data.max_pixels is not None:
        pixels = _model_pixels(recipe.values)  # images are known by their pixels
    trained = replace(data.reading(pixels), most_rows=data.max_samples_per_file)
    for files, reading in ((data.train_files, trained), (data.eval_files, data.reading(pixels))):
        for file in files:
            yield from read_tasks(file, reading=reading, on_error=data.on_bad_row, resize=data.resize_images)


def _model_pixels(values: Mapping[str, Any]) -> ModelPixels | None:
    """Of the model that a recipe names; loads its processor, which takes seconds."""
    from trl import ModelConfig

    from mmsearch_trl.engine.images import ImageEncoder
    from mmsearch_trl.recipe.build import load_processor

    names = {key: values[key] for key in ("model_name_or_path", "model_revision") if key in values}
    pixels = ImageEncoder(getattr(load_processor(ModelConfig(**names)), "image_processor", None)).pixels
    return None if pixels is None else ModelPixels(*pixels)
