"""`mmsearch search` as a user types it."""

import io
import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from mmsearch_trl.commands.main import main
from mmsearch_trl.commands.search_once import half_blocks, show_observation
from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.observation import ImageHit, Observation
from mmsearch_trl.search.index_build import build_image_index, build_text_index


BM25 = ["--text.backend", "bm25"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "pictures").mkdir()
    Image.new("RGB", (40, 20), "red").save(home / "pictures" / "red.png")
    Image.effect_noise((40, 40), 90).convert("RGB").save(home / "pictures" / "noise.png")
    rows = [{"title": "Velm [town]", "text": "A town with a tower.", "url": "http://a.example"}]
    (home / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    build_image_index(home / "pictures", home / "images", progress=False)
    build_text_index(home / "rows.jsonl", home / "texts", progress=False)
    (home / "recipe.yaml").write_text(
        f"search:\n  text: {{backend: bm25, path: {home / 'texts'}}}\n  image: {{backend: serpapi, top_k: 1}}\n"
    )
    return home


def test_a_text_is_searched(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "tower", "--text.backend", "bm25", "--text.path", str(home / "texts")]) == 0
    shown = capsys.readouterr().out
    assert "1. Velm [town]" in shown and "http://a.example" in shown and "A town with a tower." in shown


def test_a_picture_is_looked_up_on_the_backend_of_a_recipe_and_keys(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(home / "pictures" / "red.png")
    keys = ["--image.backend=index", f"--image.path={home / 'images'}", "--image.top_k", "1"]
    assert main(["search", "--image", picture, "--config", str(home / "recipe.yaml"), *keys]) == 0
    shown = capsys.readouterr().out
    assert "1. red" in shown and "(an image of 40 x 20 pixels)" in shown and "2." not in shown


def test_an_index_is_queried_by_its_folder_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "query", str(home / "texts"), "tower"]) == 0
    assert "1. Velm [town]" in capsys.readouterr().out
    picture = str(home / "pictures" / "noise.png")
    assert main(["index", "query", str(home / "images"), "--image", picture]) == 0
    assert "1. noise" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["texts", "--image", "a.png"], "holds an index of kind text: it is searched by one TEXT"),
        (["texts"], "holds an index of kind text: it is searched by one TEXT"),
        (["images", "tower"], "holds an index of kind image: it is searched by --image FILE"),
        (["gone", "tower"], "gone holds no index"),
    ],
)
def test_an_index_is_queried_by_what_it_holds(
    home: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["index", "query", str(home / words[0]), *words[1:]]) == 1
    assert message in capsys.readouterr().err


def test_nothing_found_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "zebra", "--text", f"{{backend: bm25, path: {home / 'texts'}}}"]) == 0
    assert "searched, and found nothing" in capsys.readouterr().out


def test_a_backend_of_ones_own_answers_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "search.md").read_text()
    [code] = re.findall(r'```python\n("""notes.py.*?)```', page, re.DOTALL)
    [section] = re.findall(r"```yaml\n(search:\n  text: {backend: \"notes:Notes\".*?)```", page, re.DOTALL)
    (tmp_path / "notes.py").write_text(code)
    (tmp_path / "notes.txt").write_text("Milk and bread.\nThe tower of Velm has a bell.\nVelm is far.\n")
    (tmp_path / "recipe.yaml").write_text(section)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    query = ["search", "Velm tower", "--config", "recipe.yaml"]
    assert main(query) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("notes, ") and "The tower of Velm has a bell." in shown and "far" not in shown
    assert main([*query, "--text.least", "1", "--text.top_k=2"]) == 0
    assert "2. (no title)" in capsys.readouterr().out
    for wrong, message in (
        (["--text.leest", "1"], "search.text.leest: notes:Notes takes no `leest`; did you mean `least`?"),
        (["--text.path", "gone.txt"], "search.text.backend: notes:Notes raised FileNotFoundError: "),
        (["--text.backend", "notes:Note", "--text.path", "x"], "search.text.backend: notes has no `Note`; did you"),
        (["--text.backend", "note:Notes"], "search.text.backend: there is no module note (looked for in /"),
        (["--text.backend", "notes:Notes:x"], "`search.text.backend` must be one of bm25, dense, hybrid, "),
    ):
        assert main([*query, *wrong]) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("mmsearch: error: ") and message in line
    del sys.modules["notes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a text to search for, or --image FILE"),
        (["a", "--image", "b"], "give a text to search for, or --image FILE"),
        (["tower"], "the search failed (invalid_query): no text search is configured"),
        (["--text.path", "DIR", "tower"], "give a text to search for, or --image FILE"),
        (["tower", *BM25, "--text.path", "/nowhere"], "search.text.path: /nowhere does not exist"),
        (
            [*("tower", "--text.top_k", "many"), *BM25],
            "(--text.top_k): `search.text.top_k` must be a whole number, got",
        ),
        (
            ["tower", "--text.path", "DIR"],
            "(--text.path): the key `search.text.backend` is missing: it is one of bm25",
        ),
        (["tower", "--text.backend", "bm52"], "(--text.backend): `search.text.backend` must be one of bm25, dense, "),
        (["tower", "--timeout", "3"], "(--timeout): unknown key `search.timeout`; did you mean `search.timeout_s`?"),
        (
            ["tower", "--text.backend=retriever", "--text.url", "http://127.0.0.1:9"],
            "the search failed (unavailable): the service is not there",
        ),
        (["--image", "/nowhere.png"], "cannot be read"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", *arguments]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("mmsearch: error: ") and message in line


def test_a_picture_is_half_blocks_in_its_colours() -> None:
    image = Image.new("RGB", (60, 60), "red")
    image.paste("blue", (0, 30, 60, 60))
    drawn = half_blocks(image, columns=8)
    lines = drawn.plain.splitlines()
    assert lines == ["   " + "\u2580" * 8] * 4
    colours = [span.style for span in drawn.spans]
    assert str(colours[0]) == "rgb(255,0,0) on rgb(255,0,0)" and str(colours[-1]) == "rgb(0,0,255) on rgb(0,0,255)"


def test_a_terminal_with_colours_shows_pictures() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="truecolor", width=80)
    red = Image.new("RGB", (20, 20), "red")
    show_observation(
        Observation(tool=ActionKind.IMAGE_SEARCH, hits=(ImageHit("a", thumbnail=red), ImageHit("b"))), console
    )
    assert out.getvalue().count("\u2580") == 28 * 14
    assert "its image could not be had" in out.getvalue()
