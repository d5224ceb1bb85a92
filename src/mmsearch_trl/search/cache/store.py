"""Search results cached on disk, so that no search is paid for twice and a run can be repeated against the same web.

One SQLite file in WAL mode, shared by any number of processes of one machine (not over a network file system). An
entry that cannot be read is dropped and counts as a miss; a store that cannot be read or written is reported in the
log and the search goes on without it. Where the store has a largest size, the oldest entries make room.

`put` returns the answer as a later `get` will: a large thumbnail goes through JPEG once, on the first sight too, so
the model sees the same pixels on the first call and on all others.
"""

import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.search.cache.answer_bytes import FORMAT, DamagedEntry, pack, unpack
from mmsearch_trl.search.calls.backend import Answer
from mmsearch_trl.search.index.folder import digest_of


logger = logging.getLogger(__name__)

_LOCK_WAIT_S = 2.0
_SIZE_CHECKS = 64
"""Entries that are written between two looks at the size."""
_SHARE_KEPT = 0.9
"""Of the largest size, what is left after the oldest entries were dropped."""

_TABLE = "CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, entry BLOB, made REAL, size INTEGER, hits INTEGER)"
_ENTRY = "COALESCE(CAST(entry AS BLOB), X'')"
"""SQLite puts anything into any column."""
_BY_AGE = "CREATE INDEX IF NOT EXISTS by_age ON entries (made, size)"


def answer_key(tool: ActionKind, fingerprint: str, query: Sequence[str | None], k: int) -> str:
    """SHA-256 under which the answer to a query is cached; `query` is the normalised text, or digest and names."""
    return digest_of(json.dumps([FORMAT, tool, fingerprint, list(query), k], ensure_ascii=True))


class ResultStore:
    """The persistent cache of tool answers. Methods block; any thread and any forked process may call them.

    Args:
        max_bytes: Largest size of all entries together; None for any.
        empty_lifetime_s: Seconds for which "searched and found nothing" is cached: what was not there may come.

    Raises:
        UserError: `path` cannot be used as a store.
    """

    def __init__(self, path: str | Path, *, max_bytes: int | None = None, empty_lifetime_s: float = 86_400.0) -> None:
        self.path = Path(path)
        self._max_bytes = max_bytes
        self._empty_lifetime_s = empty_lifetime_s
        self._writes = 0
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._owner = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock:
                self._connect()
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"{self.path} cannot be used as an answer cache ({error}): delete it or name another"
            ) from error

    def get(self, key: str, *, however_old: bool = False) -> Answer | None:
        """The result cached under `key`, or None.

        Args:
            however_old: Give an empty answer whose lifetime is over as well.
        """
        oldest = 0.0 if however_old else time.time() - self._empty_lifetime_s
        try:
            with self._lock:
                find = f"SELECT {_ENTRY} FROM entries WHERE key = ? AND (hits > 0 OR made >= ?)"
                row = self._connect().execute(find, (key, oldest)).fetchone()
        except sqlite3.Error as error:
            logger.warning("The answer cache %s cannot be read: %s", self.path, error)
            return None
        if row is None:
            return None
        try:
            return unpack(row[0])
        except DamagedEntry as error:
            logger.warning("A damaged entry of the answer cache %s is dropped: %s", self.path, error)
            self._write("DELETE FROM entries WHERE key = ?", (key,))
            return None

    def put(self, key: str, answer: Answer, replace: bool = False) -> Answer:
        """Cache `answer` under `key`, in place of a living one only with `replace`. Returns the answer as cached."""
        entry = pack(answer)
        now = time.time()
        keep = "ON CONFLICT (key) DO UPDATE SET entry = excluded.entry, made = excluded.made, size = excluded.size,"
        keep += " hits = excluded.hits WHERE ? OR (entries.hits = 0 AND entries.made < ?)"
        values = (key, entry, now, len(entry), len(answer), replace, now - self._empty_lifetime_s)
        self._write(f"INSERT INTO entries VALUES (?, ?, ?, ?, ?) {keep}", values)
        self._make_room()
        return self.get(key) or unpack(entry)

    def entries(self) -> Iterator[tuple[str, bytes, float]]:
        """Key, bytes and time of every entry, as it lies in the file.

        Raises:
            UserError: the file is damaged.
        """
        with self._readable(), self._lock:
            keys = [key for (key,) in self._connect().execute("SELECT key FROM entries ORDER BY made, key")]
        for key in keys:
            with self._readable(), self._lock:
                find = f"SELECT {_ENTRY}, made FROM entries WHERE key = ?"
                row = self._connect().execute(find, (key,)).fetchone()
            if row is not None:
                yield key, row[0], row[1]

    def adopt(self, key: str, entry: bytes, made: float) -> None:
        """Take an entry of another store as it lies there, unless there is one: packed anew, images would change.

        Raises:
            DamagedEntry: it is one.
        """
        values = (key, entry, made, len(entry), len(unpack(entry)))
        self._write("INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?)", values)

    def drop(self, key: str) -> None:
        """Forget an entry."""
        self._write("DELETE FROM entries WHERE key = ?", (key,))

    def close(self) -> None:
        with self._lock:
            if self._connection is not None and self._owner == os.getpid():
                self._connection.close()
            self._connection = None

    def __len__(self) -> int:
        with self._readable(), self._lock:
            return self._connect().execute("SELECT COUNT(*) FROM entries").fetchone()[0]

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(
                f"{self.path}: the answer cache is damaged ({error}): delete it, or name another"
            ) from error

    def _make_room(self) -> None:
        """Now and then: drop the oldest entries where there are too many."""
        self._writes += 1
        if self._max_bytes is None or self._writes % _SIZE_CHECKS:
            return
        try:
            with self._lock:
                [total] = self._connect().execute("SELECT COALESCE(SUM(size), 0) FROM entries").fetchone()
        except sqlite3.Error:
            return  # the write before has said what is wrong
        if total > self._max_bytes:
            running = "SELECT made, SUM(size) OVER (ORDER BY made DESC, key) AS total FROM entries"
            oldest = f"SELECT MAX(made) FROM ({running}) WHERE total > ?"
            self._write(f"DELETE FROM entries WHERE made <= ({oldest})", (int(_SHARE_KEPT * self._max_bytes),))

    def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        try:
            with self._lock, self._connect() as connection:
                connection.execute(statement, values)
        except sqlite3.Error as error:
            logger.warning("The answer cache %s cannot be written: %s", self.path, error)

    def _connect(self) -> sqlite3.Connection:
        """This process's connection; one that was made before a fork must not be used after it."""
        if self._connection is None or self._owner != os.getpid():
            connection = sqlite3.connect(self.path, timeout=_LOCK_WAIT_S, check_same_thread=False)
            # Readers do not wait for the writer; a power cut may cost the last entries, never the file.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(_TABLE)
            connection.execute(_BY_AGE)
            self._connection, self._owner = connection, os.getpid()
        return self._connection
