import io
import json
import multiprocessing
import os
import random
import sqlite3
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from search.cache.writer import write_and_tell

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.observation import ImageHit, TextHit
from mmsearch_trl.search.cache.answer_bytes import unpack
from mmsearch_trl.search.cache.store import ResultStore, answer_key
from mmsearch_trl.search.calls.backend import Answer


SMALL = Image.effect_noise((28, 30), 90).convert("RGB")
LARGE = Image.effect_noise((300, 200), 90).convert("RGB")


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "deep" / "answers.sqlite")


def image_hits(answer: Answer | None) -> list[ImageHit]:
    assert answer is not None
    return [hit for hit in answer if isinstance(hit, ImageHit)]


def test_what_is_put_is_got_by_another_store_on_the_same_file(store: ResultStore) -> None:
    hits = (TextHit("a", "b", "c", 0.5), TextHit("", "x\ud800", None, None))
    assert store.get("k") is None
    assert store.put("k", hits) == hits
    assert ResultStore(store.path).get("k") == hits


def test_a_small_thumbnail_is_kept_exactly_and_a_missing_one_stays_missing(store: ResultStore) -> None:
    store.put("k", (ImageHit("a", "u", SMALL, 0.1), ImageHit("b"), ImageHit("c", None, SMALL)))
    first, second, third = image_hits(store.get("k"))
    assert (first.title, first.url, first.score) == ("a", "u", 0.1)
    assert first.thumbnail is not None and first.thumbnail.tobytes() == SMALL.tobytes()
    assert second.thumbnail is None and third.thumbnail is not None


def test_put_returns_the_very_pixels_that_get_will(store: ResultStore) -> None:
    now = image_hits(store.put("k", (ImageHit("a", None, LARGE),)))[0].thumbnail
    later = image_hits(store.get("k"))[0].thumbnail
    assert now is not None and later is not None
    assert now.size == LARGE.size and now.tobytes() == later.tobytes()


def test_an_empty_answer_is_kept(store: ResultStore) -> None:
    store.put("none", ())
    assert store.get("none") == ()


def test_a_ready_made_reply_of_an_earlier_version_is_a_miss(store: ResultStore) -> None:
    """Earlier versions kept text that a tool had written out; no run of this one asks for it."""
    text = json.dumps({"text": "1. page", "images": []}).encode()
    entry = struct.pack("<II", zlib.crc32(text), len(text)) + text
    with pytest.raises(ValueError, match="a ready-made reply, as earlier versions kept them"):
        unpack(entry)
    with sqlite3.connect(store.path) as connection:
        connection.execute("INSERT INTO entries VALUES ('k', ?, 0, 1, 1)", (entry,))
    connection.close()
    assert store.get("k") is None and len(store) == 0


def test_the_first_answer_stays(store: ResultStore) -> None:
    store.put("k", (TextHit("first", ""),))
    assert store.put("k", (TextHit("second", ""),)) == (TextHit("first", ""),)


@pytest.mark.parametrize(
    "damage", [lambda e: e[:-1], lambda e: b"", lambda e: e[:20] + b"?" + e[21:], lambda e: "text"]
)
def test_a_damaged_entry_is_a_miss_and_dropped(store: ResultStore, damage: Callable[[bytes], Any]) -> None:
    store.put("k", (TextHit("title", "text"),))
    with sqlite3.connect(store.path) as connection:
        entry = connection.execute("SELECT entry FROM entries").fetchone()[0]
        connection.execute("UPDATE entries SET entry = ?", (damage(entry),))
    connection.close()
    assert store.get("k") is None
    assert len(store) == 0


def test_entries_are_never_unpickled(store: ResultStore) -> None:
    import pickle

    store.put("k", ())
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE entries SET entry = ?", (pickle.dumps(print),))
    connection.close()
    assert store.get("k") is None


def test_a_file_that_is_no_store_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"not a database at all" * 100)
    with pytest.raises(ValueError, match=r"x cannot be used as an answer cache .*delete it or name another"):
        ResultStore(tmp_path / "x")


def test_a_store_that_breaks_later_does_not_stop_the_search(store: ResultStore) -> None:
    with sqlite3.connect(store.path) as connection:
        connection.execute("DROP TABLE entries")
    connection.close()
    hits = (TextHit("a", "b"),)
    assert store.get("k") is None
    assert store.put("k", hits) == hits


def write(path: Path, worker: int) -> None:
    store = ResultStore(path)
    for number in range(40):
        store.put(f"{number}", (TextHit(str(worker), "x" * 1000),))
        store.put(f"{worker}-{number}", ())


def test_several_processes_write_one_store_and_a_forked_one_goes_on(store: ResultStore) -> None:
    store.put("0", (TextHit("parent", ""),))
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=write, args=(store.path, worker)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(store) == 40 + 3 * 40
    assert store.get("0") == (TextHit("parent", ""),)


def test_thumbnails_lie_in_the_file_as_png_or_jpeg(store: ResultStore) -> None:
    store.put("k", (ImageHit("a", None, SMALL), ImageHit("b", None, LARGE)))
    with sqlite3.connect(store.path) as connection:
        entry = connection.execute("SELECT entry FROM entries").fetchone()[0]
    connection.close()
    png, jpeg = entry.index(b"\x89PNG"), entry.index(b"\xff\xd8\xff")
    assert png < jpeg
    assert Image.open(io.BytesIO(entry[jpeg:])).size == LARGE.size


text = st.text(max_size=20)


@given(st.tuples(text, text, text, st.integers(1, 9)), st.tuples(text, text, text, st.integers(1, 9)))
def test_keys_are_equal_exactly_when_the_calls_are(one: tuple, two: tuple) -> None:
    keys = [answer_key(ActionKind.IMAGE_SEARCH, call[0], [call[1], call[2]], call[3]) for call in (one, two)]
    assert (keys[0] == keys[1]) == (one == two)
    assert keys[0] != answer_key(ActionKind.TEXT_SEARCH, one[0], [one[1], one[2]], one[3])


def size(store: ResultStore) -> int:
    return sum(len(entry) for _, entry, _ in store.entries())


def test_the_oldest_entries_make_room(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "small.sqlite", max_bytes=50_000)
    for number in range(300):
        store.put(str(number), (TextHit("title", "x" * 1000),))
        assert size(store) < 50_000 + 65 * 1200
    assert store.get("0") is None and store.get("299") is not None
    kept = [int(key) for key, _, _ in store.entries()]
    assert kept == list(range(kept[0], 300)), "what is kept is the newest"
    assert size(store) > 30_000


def test_a_store_that_has_room_drops_nothing(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "large.sqlite", max_bytes=10_000_000)
    for number in range(200):
        store.put(str(number), (TextHit("title", "x" * 100),))
    assert len(store) == 200


def test_nothing_found_is_asked_again_after_its_lifetime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ResultStore(tmp_path / "answers.sqlite", empty_lifetime_s=100.0)
    store.put("none", ())
    store.put("some", (TextHit("a", "b"),))
    assert store.get("none") == ()
    now = time.time() + 101
    monkeypatch.setattr(time, "time", lambda: now)
    assert store.get("none") is None and store.get("none", however_old=True) == ()
    assert store.get("some") == (TextHit("a", "b"),)
    found = (TextHit("new", "b"),)
    assert store.put("none", found) == found == store.get("none")
    assert store.put("none", ()) == found, "what was found stays"


def test_no_entry_is_lost_or_corrupt_when_writers_are_killed_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight processes write one store, each is killed by SIGKILL; what was put before is there, and whole."""
    path, log = tmp_path / "answers.sqlite", tmp_path / "log"
    ResultStore(path).close()
    log.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the server, which then imports once for all
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([write_and_tell.__module__])
    rng = random.Random(0)
    for round_ in range(4):
        workers = [context.Process(target=write_and_tell, args=(path, log / f"{round_}-{n}", n)) for n in range(8)]
        for worker in workers:
            worker.start()
        while sum(file.stat().st_size for file in log.glob(f"{round_}-*")) < 2000:
            time.sleep(0.01)
        for worker in rng.sample(workers, 8):
            time.sleep(rng.uniform(0.0, 0.05))
            worker.kill()
        for worker in workers:
            worker.join()
    store = ResultStore(path)
    told = [
        line for file in log.iterdir() for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")
    ]
    assert len(told) > 200
    for line in told:
        key = line.strip()
        assert store.get(key) == (TextHit(key, key * 100),), "an entry is lost or damaged"
    for key, entry, _ in store.entries():
        assert unpack(entry) == (TextHit(key, key * 100),)
