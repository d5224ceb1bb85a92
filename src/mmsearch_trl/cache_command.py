"""`mmsearch cache`: look after kept answers, and fill them before a run."""

import asyncio
import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.table import Table
from tqdm.auto import tqdm

from mmsearch_trl.data.task import Task
from mmsearch_trl.data.tasks import read_tasks
from mmsearch_trl.rollout.loop import image_query
from mmsearch_trl.search.answer_bytes import unpack
from mmsearch_trl.search.opening import build_runtime
from mmsearch_trl.search.runtime import SearchRuntime
from mmsearch_trl.search.store import AnswerStore
from mmsearch_trl.search.totals import SearchTotals
from mmsearch_trl.search.types import ImageHit, RawReply, Tool
from mmsearch_trl.search.watch import SearchLost, SearchWatch


if TYPE_CHECKING:
    from mmsearch_trl.config import Recipe

_DAMAGED = "damaged"
_AT_ONCE = 256
"""Tasks that are in memory, with their pictures."""
_MAX_FAILURE_SHARE = 0.2


@dataclass(slots=True)
class Kind:
    """The entries of one kind of answer."""

    entries: int = 0
    bytes: int = 0
    times: list[float] = field(default_factory=list)


def stats(file: Path) -> Table:
    """How many answers of which kind a file holds.

    Raises:
        ValueError: the file is not there, or is no answer cache.
    """
    kinds: dict[str, Kind] = {}
    with closing(_existing(file)) as store:
        for _, entry, made in store.entries():
            kind = kinds.setdefault(_kind(entry), Kind())
            kind.entries += 1
            kind.bytes += len(entry)
            kind.times.append(made)
    table = Table(title=str(file))
    for heading in ("answers", "entries", "MB", "oldest", "newest"):
        table.add_column(heading, justify="left" if heading == "answers" else "right")
    for name, kind in sorted(kinds.items()):
        when = (
            datetime.fromtimestamp(moment).strftime("%Y-%m-%d %H:%M") for moment in (min(kind.times), max(kind.times))
        )
        table.add_row(name, str(kind.entries), f"{kind.bytes / 1e6:.1f}", *when)
    entries, size = sum(kind.entries for kind in kinds.values()), sum(kind.bytes for kind in kinds.values())
    table.add_row("all", str(entries), f"{size / 1e6:.1f}", "", "", style="bold")
    return table


def verify(file: Path, *, drop: bool = False) -> list[str]:
    """Read every entry; the keys of the damaged ones, which `drop` removes.

    Raises:
        ValueError: the file is not there, or is no answer cache.
    """
    damaged = []
    with closing(_existing(file)) as store:
        for key, entry, _ in tqdm(store.entries(), total=len(store), desc="Reading", unit="answer"):
            if _kind(entry) == _DAMAGED:
                damaged.append(key)
        for key in damaged if drop else ():
            store.drop(key)
    return damaged


def export(file: Path, out: Path) -> str:
    """Write all answers into one new file that can be copied; its SHA-256, for a run to be told from others.

    Raises:
        ValueError: `file` is no answer cache, or `out` is there already.
    """
    if out.exists():
        raise ValueError(f"{out} exists: choose another name, or delete it")
    _existing(file).close()
    out.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("VACUUM INTO ?", (str(out),))
    with out.open("rb") as written:
        return hashlib.file_digest(written, "sha256").hexdigest()


def add(file: Path, others: Iterable[Path]) -> int:
    """Add the answers of other files to `file`, where it has none of its own; how many there were.

    Raises:
        ValueError: one of the files is no answer cache.
    """
    with closing(AnswerStore(file)) as store:
        before = len(store)
        for other in others:
            with closing(_existing(other)) as source:
                for entry in tqdm(source.entries(), total=len(source), desc=other.name, unit="answer"):
                    with suppress(Exception):  # a damaged entry is not worth having
                        store.adopt(*entry)
        return len(store) - before


class Prefetched(NamedTuple):
    """What came of the searches, by name, and their totals."""

    outcomes: Counter[str]
    totals: Mapping[Tool, SearchTotals]


def prefetch(recipe: "Recipe") -> Prefetched:
    """Look up the picture of every question of a recipe, so that a run finds the answers kept.

    What is kept already is not asked for again, so a prefetch that was stopped goes on.

    Raises:
        ValueError: the recipe keeps no answers, or has no image search.
        SearchLost: searches are not answered.
    """
    if recipe.search.cache is None:
        raise ValueError("search.cache is not set: there is nowhere to keep the answers")
    runtime = build_runtime(recipe.search)
    if not runtime.answers(Tool.IMAGE_SEARCH):
        raise ValueError("no image search is configured: there is nothing to look up")
    try:
        return Prefetched(asyncio.run(_prefetch(recipe, runtime)), runtime.totals)
    finally:
        runtime.close()


async def _prefetch(recipe: "Recipe", runtime: SearchRuntime) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    watch = SearchWatch(_MAX_FAILURE_SHARE, window=_AT_ONCE)
    try:
        with tqdm(desc="Looking up", unit="picture") as bar:
            tasks = _tasks(recipe)
            while chunk := list(islice(tasks, _AT_ONCE)):
                queries = [query for task in chunk if (query := image_query(task)) is not None]
                found = await asyncio.gather(*(runtime.image_search(query) for query in queries))
                failures = [o.failure for o in found if o.failure is not None]
                outcomes.update(failure.kind.value for failure in failures)
                outcomes.update(
                    "kept before" if o.cached or o.coalesced else "looked up" for o in found if o.failure is None
                )
                bar.update(len(chunk))
                bar.set_postfix(dict(outcomes))
                counted = Counter(failure.kind for failure in failures if failure.infrastructure)
                if complaint := watch.complaint(len(found), counted):
                    raise SearchLost(f"{complaint}; what was found is kept")
    finally:
        await runtime.disconnect()
    return outcomes


def _tasks(recipe: "Recipe") -> Iterator[Task]:
    for file in (*recipe.data.train_files, *recipe.data.eval_files):
        yield from read_tasks(file, on_error=recipe.data.on_bad_row, resize=recipe.data.resize_images)


def _existing(file: Path) -> AnswerStore:
    if not file.is_file():
        raise ValueError(f"{file} is not there")
    return AnswerStore(file)


def _kind(entry: bytes) -> str:
    try:
        answer = unpack(entry)
    except Exception:  # whatever a damaged entry makes the decoders raise
        return _DAMAGED
    if isinstance(answer, RawReply):
        return "ready-made replies"
    if not answer:
        return "nothing found"
    return "image hits" if isinstance(answer[0], ImageHit) else "text hits"
