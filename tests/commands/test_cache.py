"""`mmsearch cache` as a user types it."""

import sqlite3
from pathlib import Path

import pytest
from PIL import Image

from mmsearch_trl.commands.cache_upkeep import add, export, verify
from mmsearch_trl.commands.main import main
from mmsearch_trl.core.observation import ImageHit, TextHit
from mmsearch_trl.search.cache.store import ResultStore


RED = Image.new("RGB", (8, 8), "red")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    store = ResultStore(tmp_path / "answers.sqlite")
    store.put("image", (ImageHit("a", None, RED), ImageHit("b")))
    store.put("text", (TextHit("a", "b"),))
    store.put("none", ())
    store.put("more", (TextHit("c", "d"),))
    store.close()
    return store.path


def damage(file: Path, key: str) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE entries SET entry = X'00' || entry WHERE key = ?", (key,))
    connection.close()


def test_stats_tell_the_kinds_of_answers(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(file, "more")
    assert main(["cache", "stats", str(file)]) == 0
    shown = capsys.readouterr().out
    for kind in ("image hits", "text hits", "nothing found", "damaged"):
        [line] = [line for line in shown.splitlines() if kind in line]
        assert line.split(kind)[1].split("│")[1].strip() == "1"
    assert "4" in shown.splitlines()[-2]


def test_verify_finds_the_damaged_and_removes_them_when_told(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(file) == []
    damage(file, "text")
    assert main(["cache", "verify", str(file)]) == 1
    assert "1 answers" in capsys.readouterr().err
    assert main(["cache", "verify", str(file), "--drop"]) == 0
    assert main(["cache", "verify", str(file)]) == 0
    assert ResultStore(file).get("image") is not None


def test_an_export_holds_everything_and_has_a_name_of_its_own(file: Path, tmp_path: Path) -> None:
    digest = export(file, tmp_path / "out" / "frozen.sqlite")
    assert len(digest) == 64
    copy = ResultStore(tmp_path / "out" / "frozen.sqlite")
    assert copy.get("text") == (TextHit("a", "b"),) and len(copy) == 4
    with pytest.raises(ValueError, match="exists: choose another name"):
        export(file, copy.path)


def test_an_import_adds_what_is_missing_and_changes_nothing(file: Path, tmp_path: Path) -> None:
    mine = ResultStore(tmp_path / "mine.sqlite")
    mine.put("text", (TextHit("mine", ""),))
    mine.close()
    damage(file, "more")
    assert add(mine.path, [file]) == 2
    assert mine.get("text") == (TextHit("mine", ""),)
    kept = mine.get("image")
    assert isinstance(kept, tuple) and isinstance(kept[0], ImageHit) and kept[0].thumbnail is not None
    assert kept[0].thumbnail.tobytes() == RED.tobytes()


def test_an_import_does_not_encode_pictures_again(tmp_path: Path) -> None:
    """A large thumbnail is JPEG: encoded twice, a replay would show the model other pixels."""
    other = ResultStore(tmp_path / "other.sqlite")
    other.put("large", (ImageHit("a", None, Image.effect_noise((300, 200), 90).convert("RGB")),))
    add(tmp_path / "mine.sqlite", [other.path])
    mine = ResultStore(tmp_path / "mine.sqlite")
    assert list(mine.entries()) == list(other.entries())


@pytest.mark.parametrize("action", [["stats"], ["verify"], ["export", "OUT"], ["import", "OTHER"]])
def test_a_file_that_is_not_there_is_named(
    action: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [action[0], str(tmp_path / "no.sqlite"), *(str(tmp_path / word) for word in action[1:])]
    assert main(["cache", *words]) == 1
    assert "is not there" in capsys.readouterr().err
    assert action[0] == "import" or not (tmp_path / "no.sqlite").exists()


DAMAGE = {
    "no entry": "UPDATE entries SET entry = NULL WHERE key = 'text'",
    "a number for an entry": "UPDATE entries SET entry = 5 WHERE key = 'text'",
    "no time": "UPDATE entries SET made = NULL WHERE key = 'text'",
    "a text for a time": "UPDATE entries SET made = 'soon' WHERE key = 'text'",
    "a time that there is not": "UPDATE entries SET made = 1e300 WHERE key = 'text'",
    "a time that is no number": "UPDATE entries SET made = 9e999 WHERE key = 'text'",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_entry_that_nothing_here_wrote_is_a_damaged_one(
    damage: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute(DAMAGE[damage])
    connection.close()
    assert main(["cache", "stats", str(file)]) == 0 and "damaged" in capsys.readouterr().out
    assert verify(file) == ["text"]
    assert main(["cache", "export", str(file), str(tmp_path / "out.sqlite")]) == 0
    assert add(tmp_path / "mine.sqlite", [file]) >= 3 and verify(tmp_path / "mine.sqlite") == []
    assert main(["cache", "verify", "--drop", str(file)]) == 0 and verify(file) == []


@pytest.mark.parametrize(
    "action", [["stats"], ["verify"], ["verify", "--drop"], ["export", "OUT"], ["import", "OTHER"]]
)
@pytest.mark.parametrize("damage", ["cut", "noise", "no database", "another table", "a view"])
def test_a_malformed_file_is_named_in_one_line(
    damage: str, action: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = malformed(damage, tmp_path / "answers.sqlite")
    words = [str(tmp_path / word) if word.isupper() else word for word in action[1:]]
    given = [words[0], str(file)] if action[0] == "import" else [str(file), *words]
    assert main(["cache", action[0], *given]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1 and lines[0].startswith(f"mmsearch: error: {file}")


def malformed(damage: str, file: Path) -> Path:
    if damage in ("another table", "a view"):
        table = "CREATE TABLE entries (a, b)"
        view = "CREATE VIEW entries AS SELECT 1 AS key, 2 AS entry, 3 AS made, 4 AS size, 5 AS hits"
        with sqlite3.connect(file) as connection:
            connection.execute(view if damage == "a view" else table)
        connection.close()
        return file
    store = ResultStore(file)
    for number in range(300):
        store.put(f"key {number}", (TextHit("title", "text " * 60),))
    store.close()
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    whole = file.read_bytes()
    if damage == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "no database":
        file.write_bytes(b"no database" * 500)
    else:
        pages = [whole[start : start + 4096] for start in range(0, len(whole), 4096)]
        file.write_bytes(b"".join([*pages[:2], *(b"\x5a" * 64 + page[64:] for page in pages[2:])]))
    return file
