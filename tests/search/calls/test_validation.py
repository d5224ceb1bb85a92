"""The one door: what a backend or a cache gives is right, or is a failure."""

import asyncio
import json
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmsearch_trl.commands.main import main
from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import FailureKind, Hit, ImageHit, TextHit
from mmsearch_trl.search.cache.answer_bytes import DamagedEntry, pack, unpack
from mmsearch_trl.search.cache.store import ResultStore, answer_key
from mmsearch_trl.search.calls.validation import MAX_CHARS, MAX_HITS, checked_answer, text_hits
from mmsearch_trl.search.runtime import Mode, SearchRuntime


RED = Image.new("RGB", (8, 8), "red")
IMAGE, TEXT = ActionKind.IMAGE_SEARCH, ActionKind.TEXT_SEARCH


class Wrong(str):
    """A text all the same."""


WRONG: list[tuple[ActionKind, Any]] = [
    (TEXT, TextHit(3, "b")),  # pyright: ignore[reportArgumentType]
    (TEXT, TextHit("a", None)),  # pyright: ignore[reportArgumentType]
    (TEXT, TextHit("a", b"b")),  # pyright: ignore[reportArgumentType]
    (TEXT, TextHit("a", "b", url=4)),  # pyright: ignore[reportArgumentType]
    (TEXT, TextHit("a", "b", score="0.5")),  # pyright: ignore[reportArgumentType]
    (TEXT, TextHit("a", "b", score=math.nan)),
    (TEXT, TextHit("a", "b", score=-math.inf)),
    (TEXT, TextHit("a", "b", score=True)),
    (TEXT, TextHit("a", "b", id=7)),  # pyright: ignore[reportArgumentType]
    (TEXT, TextHit("a", "b", id=["7"])),  # pyright: ignore[reportArgumentType]
    (TEXT, TextHit("a", "b" * (MAX_CHARS + 1))),
    (TEXT, ImageHit("a")),
    (TEXT, {"title": "a", "text": "b"}),
    (TEXT, ("a", "b")),
    (TEXT, "ab"),
    (IMAGE, ImageHit(["a"])),  # pyright: ignore[reportArgumentType]
    (IMAGE, ImageHit("a", url=b"u")),  # pyright: ignore[reportArgumentType]
    (IMAGE, ImageHit("a", thumbnail="/etc/hostname")),  # pyright: ignore[reportArgumentType]
    (IMAGE, ImageHit("a", thumbnail=b"GIF8")),  # pyright: ignore[reportArgumentType]
    (IMAGE, ImageHit("a", score="high")),  # pyright: ignore[reportArgumentType]
    (IMAGE, TextHit("a", "b")),
]


@pytest.mark.parametrize(("tool", "hit"), WRONG)
def test_a_hit_that_is_not_right_is_a_bad_response(tool: ActionKind, hit: Any) -> None:
    with pytest.raises(SearchError) as raised:
        checked_answer(tool, [hit], 3)
    assert raised.value.failure.kind is FailureKind.BAD_RESPONSE
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("answer", [None, "hits", b"hits", 3, {"hits": []}, {TextHit("a", "b")}, iter([])])
def test_what_is_no_list_of_hits_is_one_too(answer: Any) -> None:
    with pytest.raises(SearchError):
        checked_answer(TEXT, answer, 3)


def test_numbers_of_any_library_are_scores() -> None:
    [hit] = checked_answer(TEXT, [TextHit("a", Wrong("b"), score=np.float32(0.5))], 3)  # pyright: ignore[reportArgumentType]
    assert hit.score == 0.5 and type(hit.score) is float
    assert checked_answer(TEXT, [TextHit("a", "b", score=3)], 3)[0].score == 3.0


def test_an_answer_is_cut_to_what_was_asked_for() -> None:
    many = [TextHit("a", str(number)) for number in range(100_000)]
    assert len(checked_answer(TEXT, many, 3)) == 3
    assert checked_answer(TEXT, many, 0) == checked_answer(TEXT, many, -1) == ()
    assert len(text_hits(many)) == MAX_HITS


def entry(rows: Any, images: bytes = b"") -> bytes:
    """Bytes as `pack` writes them, their checksum right, of whatever rows."""
    return reply({"hits": rows}, images)


def reply(values: Any, images: bytes = b"") -> bytes:
    text = json.dumps(values).encode()
    return struct.pack("<II", zlib.crc32(text + images), len(text)) + text + images


PACKED = pack((ImageHit("a", thumbnail=RED),))
PNG = PACKED[PACKED.index(b"\x89PNG") :]
POISON: dict[str, bytes] = {
    "a numeric title": entry([["text", 3, None, None, ["b", None]]]),
    "no text": entry([["text", "a", None, None, [None, None]]]),
    "a numeric text": entry([["text", "a", None, None, [3, None]]]),
    "a numeric address": entry([["text", "a", 3, None, ["b", None]]]),
    "a score as text": entry([["text", "a", None, "0.5", ["b", None]]]),
    "a score that is none": entry([["text", "a", None, math.nan, ["b", None]]]),
    "an endless score": entry([["image", "a", None, math.inf, None]]),
    "a truth for a score": entry([["image", "a", None, True, None]]),
    "a numeric id": entry([["text", "a", None, None, ["b", 7]]]),
    "hits of both kinds": entry([["text", "a", None, None, ["b", None]], ["image", "a", None, None, None]]),
    "100,000 hits": entry([["text", "a", None, None, ["b", None]]] * 100_000),
    "an image that is not there": entry([["image", "a", None, None, 300]]),
    "half an image": entry([["image", "a", None, None, len(PNG)]], PNG[:-20]),
    "an image of no size": entry([["image", "a", None, None, 0]]),
    "an image of a negative size": entry([["image", "a", None, None, -5]], PNG),
    "an image that nobody asked for": entry([["image", "a", None, None, None]], PNG),
    "an image that is none": entry([["image", "a", None, None, 6]], b"<html>"),
    "a row of another kind": entry([["page", "a", None, None, None]]),
    "a row that is none": entry([3]),
    "a raw reply without its picture": reply({"text": "<image>", "images": [900]}),
    "no list": entry({"0": 1}),
}


@pytest.mark.parametrize("name", POISON)
def test_an_entry_that_no_backend_could_have_given_is_damaged(name: str) -> None:
    with pytest.raises(DamagedEntry):
        unpack(POISON[name])


def test_what_was_packed_is_not() -> None:
    answers: list[tuple[Hit, ...]] = [
        (),
        (TextHit("a", "b", "u", 0.5, "7"), TextHit("", "x\ud800")),
        (ImageHit("a"), ImageHit("b", "u", RED, 1.0), ImageHit("c", None, RED)),
    ]
    for answer in answers:
        assert [hit.title for hit in unpack(pack(answer))] == [hit.title for hit in answer]


def poisoned(path: Path, entries: dict[str, bytes]) -> ResultStore:
    """A cache file with these entries, and a right one called `good`."""
    store = ResultStore(path)
    store.put("good", (TextHit("a", "b"),))
    for key, value in entries.items():
        store._write("INSERT OR REPLACE INTO entries VALUES (?, ?, 1.0, 1, 1)", (key, value))
    return store


def test_verify_finds_every_one_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "answers.sqlite"
    poisoned(file, POISON).close()
    assert main(["cache", "verify", str(file)]) == 1
    assert f"{len(POISON)} answers of {file} are damaged" in capsys.readouterr().err
    assert main(["cache", "stats", str(file)]) == 0
    assert main(["cache", "verify", str(file), "--drop"]) == 0
    store = ResultStore(file)
    assert len(store) == 1 and store.get("good") == (TextHit("a", "b"),)


@pytest.mark.parametrize("made", ["yesterday", 1e300, -1e300, math.inf, None, b"x"])
def test_an_entry_of_no_time_is_damaged_and_counted(
    made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = poisoned(tmp_path / "answers.sqlite", {})
    store._write("INSERT INTO entries VALUES ('odd', ?, ?, 1, 0)", (pack(()), made))
    store._write("INSERT INTO entries VALUES ('none', NULL, 1.0, 1, 1)", ())
    store.close()
    assert main(["cache", "stats", str(store.path)]) == 0 and "damaged" in capsys.readouterr().out
    assert main(["cache", "verify", str(store.path)]) == 1 and "2 answers" in capsys.readouterr().err
    assert main(["cache", "import", str(tmp_path / "mine.sqlite"), str(store.path)]) == 0
    assert ResultStore(store.path).get("none") is None


class Fixed:
    name, fingerprint = "fixed", "1"
    by_pixels = True

    def __init__(self, *hits: Hit) -> None:
        self.hits, self.calls = hits, 0

    async def search(self, query: Any, k: int) -> tuple[Hit, ...]:
        self.calls += 1
        return self.hits


def run(runtime: SearchRuntime, query: str) -> Any:
    async def search() -> Any:
        try:
            return await runtime.text_search(query)
        finally:
            await runtime.disconnect()

    return asyncio.run(search())


@pytest.mark.parametrize("poison", [POISON["a score as text"], pack((ImageHit("a", thumbnail=RED),)), b"", b"\0" * 9])
def test_a_wrong_entry_is_searched_anew_and_replaced(poison: bytes, tmp_path: Path) -> None:
    key = answer_key(TEXT, "1", ["q"], 3)
    store = poisoned(tmp_path / "answers.sqlite", {key: poison})
    backend = Fixed(TextHit("fresh", "b"))
    observation = run(SearchRuntime(None, backend, cache=store), "q")  # pyright: ignore[reportArgumentType]
    assert [hit.title for hit in observation.hits] == ["fresh"] and not observation.cached and backend.calls == 1
    assert store.get(key) == (TextHit("fresh", "b"),)


def test_in_a_replay_it_is_not_cached(tmp_path: Path) -> None:
    key = answer_key(TEXT, "1", ["q"], 3)
    store = poisoned(tmp_path / "answers.sqlite", {key: pack((ImageHit("a"),))})
    observation = run(SearchRuntime(None, Fixed(), cache=store, mode=Mode.REPLAY), "q")  # pyright: ignore[reportArgumentType]
    assert observation.failure is not None and observation.failure.kind is FailureKind.NOT_CACHED


def test_a_cached_answer_is_cut_as_a_backend_s_is(tmp_path: Path) -> None:
    many = tuple(TextHit("a", str(number)) for number in range(900))
    store = poisoned(tmp_path / "answers.sqlite", {answer_key(TEXT, "1", ["q"], 3): pack(many)})
    observation = run(SearchRuntime(None, Fixed(), cache=store), "q")  # pyright: ignore[reportArgumentType]
    assert observation.cached and [hit.text for hit in observation.hits] == ["0", "1", "2"]


def test_a_backend_s_wrong_answer_is_not_cached(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "answers.sqlite")
    backend = Fixed(TextHit("a", "b", score="0.5"))  # pyright: ignore[reportArgumentType]
    observation = run(SearchRuntime(None, backend, cache=store), "q")  # pyright: ignore[reportArgumentType]
    assert observation.failure is not None and observation.failure.kind is FailureKind.BAD_RESPONSE
    assert len(store) == 0
