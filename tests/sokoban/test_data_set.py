"""`mmsearch data sokoban`, and its pictures."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mmsearch_trl.commands.main import main
from mmsearch_trl.sokoban.level import Level
from mmsearch_trl.sokoban.picture import HEIGHT, frame


def test_levels_are_written_with_their_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "levels"
    assert main(["data", "sokoban", str(out), "--levels", "3", "--kind", "large-v0", "--seed", "5"]) == 0
    assert f"{out / 'levels.jsonl'}: 3 rows" in capsys.readouterr().out
    rows = [json.loads(line) for line in (out / "levels.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == [f"sokoban-large-v0-5-{i}" for i in range(3)]
    for row in rows:
        level = Level.read(row["level"])
        system, user = row["messages"]
        assert (system["role"], user["role"], row["answer"]) == ("system", "user", "")
        picture = Image.open(out / user["content"][0]["image"]).convert("RGB")
        assert picture.tobytes() == frame(level.fixed, level.start).tobytes()
        assert picture.height == HEIGHT // 13 * 13


def test_every_kind_of_cell_is_seen() -> None:
    """Each of wall, floor, target, both boxes, the player, and the player on a target, looks like no other."""
    marks, looks = "#######\n# .*$@#\n#     #\n#######", set()
    for text in (marks.replace("$@", "$+").replace(" .", "  "), marks):
        level = Level.read(text)
        image, side = frame(level.fixed, level.start), HEIGHT // 4
        for column in range(1, 6) if text == marks else (5,):
            looks.add(image.crop((column * side, side, (column + 1) * side, 2 * side)).tobytes())
        looks.add(image.crop((0, 0, side, side)).tobytes())
    assert len(looks) == 7


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kind", "tiny"], "--kind tiny: it is one of small-v0"),
        (["--levels", "0"], "--levels 0: it must be 1 or more"),
    ],
)
def test_what_cannot_be_written_is_refused(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "sokoban", str(tmp_path / "out"), *arguments]) == 1
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").touch()
    assert main(["data", "sokoban", str(tmp_path)]) == 1
    assert "is there already" in capsys.readouterr().err
