"""`mmsearch cache`: look after cached results; `prefetch.py` makes them."""

import hashlib
import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from rich.table import Table
from tqdm.auto import tqdm

from mmsearch_trl.core.boundaries import writing
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.observation import ImageHit
from mmsearch_trl.search.cache.answer_bytes import DamagedEntry, unpack
from mmsearch_trl.search.cache.store import ResultStore


_DAMAGED = "damaged"


@dataclass(slots=True)
class Kind:
    """The entries of one kind of answer."""

    entries: int = 0
    bytes: int = 0
    times: list[float] = field(default_factory=list)


def stats(file: Path) -> Table:
    """How many answers of which kind a file holds.

    Raises:
        UserError: the file is not there, or is no answer cache.
    """
    kinds: dict[str, Kind] = {}
    with closing(_existing(file)) as store:
        for _, entry, made in store.entries():
            kind = kinds.setdefault(_kind(entry, made), Kind())
            kind.entries += 1
            kind.bytes += len(entry)
            if _is_time(made):
                kind.times.append(made)
    table = Table(title=str(file))
    for heading in ("answers", "entries", "MB", "oldest", "newest"):
        table.add_column(heading, justify="left" if heading == "answers" else "right")
    for name, kind in sorted(kinds.items()):
        ends = (min(kind.times), max(kind.times)) if kind.times else ()
        when = (datetime.fromtimestamp(moment).strftime("%Y-%m-%d %H:%M") for moment in ends)
        table.add_row(name, str(kind.entries), f"{kind.bytes / 1e6:.1f}", *when)
    entries, size = sum(kind.entries for kind in kinds.values()), sum(kind.bytes for kind in kinds.values())
    table.add_row("all", str(entries), f"{size / 1e6:.1f}", "", "", style="bold")
    return table


def verify(file: Path, *, drop: bool = False) -> list[str]:
    """Read every entry; the keys of the damaged ones, which `drop` removes.

    Raises:
        UserError: the file is not there, or is no answer cache.
    """
    damaged = []
    with closing(_existing(file)) as store:
        for key, entry, made in tqdm(store.entries(), total=len(store), desc="Reading", unit="answer"):
            if _kind(entry, made) == _DAMAGED:
                damaged.append(key)
        for key in damaged if drop else ():
            store.drop(key)
    return damaged


def export(file: Path, out: Path) -> str:
    """Write all answers into one new file that can be copied; its SHA-256, for a run to be told from others.

    Raises:
        UserError: `file` is no answer cache or damaged, or `out` is there already or cannot be written.
    """
    if out.exists():
        raise UserError(f"{out} exists: choose another name, or delete it")
    _existing(file).close()
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(sqlite3.connect(file)) as connection:
                connection.execute("VACUUM INTO ?", (str(out),))
        except sqlite3.Error as error:
            out.unlink(missing_ok=True)
            raise UserError(f"{file} cannot be written to {out}: {error}") from error
        with out.open("rb") as written:
            return hashlib.file_digest(written, "sha256").hexdigest()


def add(file: Path, others: Iterable[Path]) -> int:
    """Add the answers of other files to `file`, where it has none of its own; how many there were.

    Raises:
        UserError: one of the files is no answer cache.
    """
    with closing(ResultStore(file)) as store:
        before = len(store)
        for other in others:
            with closing(_existing(other)) as source:
                for key, entry, made in tqdm(source.entries(), total=len(source), desc=other.name, unit="answer"):
                    with suppress(DamagedEntry):  # it is not worth having
                        store.adopt(key, entry, made if _is_time(made) else 0.0)
        return len(store) - before


def _existing(file: Path) -> ResultStore:
    if not file.is_file():
        raise UserError(f"{file} is not there")
    return ResultStore(file)


def _is_time(made: object) -> bool:
    """Whether it is seconds since 1970, up to the year 9999."""
    return isinstance(made, int | float) and 0 <= made < 253_402_300_800


def _kind(entry: bytes, made: object) -> str:
    if not _is_time(made):
        return _DAMAGED
    try:
        answer = unpack(entry)
    except DamagedEntry:
        return _DAMAGED
    if not answer:
        return "nothing found"
    return "image hits" if isinstance(answer[0], ImageHit) else "text hits"
