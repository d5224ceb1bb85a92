"""Answers kept on disk, so that no search is paid for twice and a run can be repeated against the same web.

One SQLite file in WAL mode, shared by any number of processes of one machine (not over a network file system). An
entry is JSON, then the thumbnails as PNG or JPEG, under a CRC; nothing is ever unpickled. An entry that cannot be read
is dropped and counts as a miss; a store that cannot be read or written is reported in the log and the search goes on
without it.

`put` returns the answer as a later `get` will: a large thumbnail goes through JPEG once, on the first sight too, so
the model sees the same pixels on the first call and on all others.
"""

import json
import logging
import os
import sqlite3
import struct
import threading
import time
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mmsearch_trl.search.image.loading import load_image
from mmsearch_trl.search.image.thumbnail import encode_thumbnail
from mmsearch_trl.search.index_folder import digest_of
from mmsearch_trl.search.types import Answer, Hit, ImageHit, RawReply, TextHit, Tool


logger = logging.getLogger(__name__)

_FORMAT = 2
_HEADER = struct.Struct("<II")
_LOCK_WAIT_S = 2.0


def answer_key(tool: Tool, fingerprint: str, query: Sequence[str | None], k: int) -> str:
    """SHA-256 under which the answer to a query is kept; `query` is the normalised text, or digest and names."""
    return digest_of(json.dumps([_FORMAT, tool.value, fingerprint, list(query), k], ensure_ascii=True))


class AnswerStore:
    """The persistent cache of tool answers. Methods block; any thread and any forked process may call them.

    Raises:
        ValueError: `path` cannot be used as a store.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._owner = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock:
                self._connect()
        except (OSError, sqlite3.Error) as error:
            raise ValueError(
                f"{self.path} cannot be used as an answer cache ({error}): delete it or name another"
            ) from error

    def get(self, key: str) -> Answer | None:
        """The answer kept under `key`, or None."""
        try:
            with self._lock:
                row = self._connect().execute("SELECT entry FROM answers WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            logger.warning("The answer cache %s cannot be read: %s", self.path, error)
            return None
        if row is None:
            return None
        try:
            return _unpack(row[0])
        except Exception as error:  # whatever a damaged entry makes the decoders raise
            logger.warning("A damaged entry of the answer cache %s is dropped (%s)", self.path, type(error).__name__)
            self._write("DELETE FROM answers WHERE key = ?", (key,))
            return None

    def put(self, key: str, answer: Answer, replace: bool = False) -> Answer:
        """Keep `answer` under `key`, in place of another only with `replace`. Returns the answer as kept."""
        entry = _pack(answer)
        rule = "REPLACE" if replace else "IGNORE"
        self._write(f"INSERT OR {rule} INTO answers VALUES (?, ?, ?)", (key, entry, time.time()))
        return self.get(key) or _unpack(entry)

    def close(self) -> None:
        with self._lock:
            if self._connection is not None and self._owner == os.getpid():
                self._connection.close()
            self._connection = None

    def __len__(self) -> int:
        with self._lock:
            return self._connect().execute("SELECT COUNT(*) FROM answers").fetchone()[0]

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
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, entry BLOB, made REAL)")
            self._connection, self._owner = connection, os.getpid()
        return self._connection


def _pack(answer: Answer) -> bytes:
    """CRC, length of the JSON, JSON, pictures end to end."""
    pictures: list[bytes] = []

    def place(image: Image.Image | None) -> int | None:
        """The length of the picture's bytes, which are read back in the order of the JSON."""
        if image is None:
            return None
        pictures.append(encode_thumbnail(image))
        return len(pictures[-1])

    if isinstance(answer, RawReply):
        values: dict[str, Any] = {"text": answer.text, "images": [place(image) for image in answer.images]}
    else:
        values = {"hits": [_hit_values(hit, place(getattr(hit, "thumbnail", None))) for hit in answer]}
    text = json.dumps(values).encode()
    body = text + b"".join(pictures)
    return _HEADER.pack(zlib.crc32(body), len(text)) + body


def _hit_values(hit: Hit, thumbnail: int | None) -> list[Any]:
    if isinstance(hit, ImageHit):
        return ["image", hit.title, hit.url, hit.score, thumbnail]
    return ["text", hit.title, hit.url, hit.score, [hit.text, hit.id]]


def _unpack(entry: bytes) -> Answer:
    crc, length = _HEADER.unpack_from(entry)
    body = entry[_HEADER.size :]
    if zlib.crc32(body) != crc:
        raise ValueError("the checksum does not match")
    values = json.loads(body[:length])
    pictures = _Pictures(body[length:])
    if "hits" not in values:
        return RawReply(values["text"], tuple(pictures.take(values["images"])))
    return tuple(_hit(kind, title, url, score, rest, pictures) for kind, title, url, score, rest in values["hits"])


def _hit(kind: str, title: str, url: str | None, score: float | None, rest: Any, pictures: "_Pictures") -> Hit:
    if kind == "text":
        return TextHit(title=title, text=rest[0], url=url, score=score, id=rest[1])
    thumbnail = None if rest is None else next(iter(pictures.take([rest])))
    return ImageHit(title=title, url=url, thumbnail=thumbnail, score=score)


class _Pictures:
    """Reads pictures that lie end to end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def take(self, lengths: Iterable[int]) -> Iterable[Image.Image]:
        for length in lengths:
            start, self._offset = self._offset, self._offset + length
            yield load_image(self._data[start : self._offset])
