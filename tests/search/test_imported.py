"""`backend: package.module:Name`: what a user's class or function is given, and how its mistakes are told."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from PIL import Image

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.observation import ImageQuery, TextHit
from mmsearch_trl.search.calls.section import open_backend
from mmsearch_trl.search.config import SearchConfig
from mmsearch_trl.search.factory import build_runtime
from mmsearch_trl.search.imported import ImportedImageConfig, ImportedTextConfig


CODE = """
from mmsearch_trl.core.observation import ImageHit, TextHit

number = 3

class Echo:
    name, fingerprint, paid = "echo", "echo-1", True

    def __init__(self, word, *, times: int = 1):
        if times < 0:
            raise ValueError("times is negative")
        self.word, self.times = word, times

    async def search(self, query, k):
        return [TextHit(title=self.word, text=query)] * min(k, self.times)

class Anything(Echo):
    def __init__(self, **keys):
        self.keys = keys

class Nameless:
    def search(self, query, k):
        return []

class Greedy(Echo):
    def __init__(self, top_k):
        pass

def search(query, k, word="said"):
    return [TextHit(title=word, text=query)]

async def search_later(query, k, *, word):
    return [TextHit(title=word, text=query)]

def look(query, k):
    return [ImageHit(title=f"{query.image.width} wide")]

def needs_more(query, k, word): ...
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with a package of the user's; neither it nor its modules outlive the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "backends.py").write_text(dedent(CODE))
    (tmp_path / "theirs" / "broken.py").write_text("import mmsearch_trl\n1 / 0\n")
    (tmp_path / "theirs" / "typo.py").write_text("def search(:\n")
    (tmp_path / "theirs" / "wanting.py").write_text("import no_such_library\n")
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "theirs"]:
        del sys.modules[name]


def text(name: str, **arguments: Any) -> ImportedTextConfig:
    return ImportedTextConfig(backend=f"theirs.backends:{name}", arguments=arguments)


def found(section: ImportedTextConfig) -> tuple[Any, ...]:
    runtime = build_runtime(SearchConfig(text=section))
    observation = asyncio.run(runtime.text_search("who"))
    runtime.close()
    assert observation.failure is None
    return observation.hits


@pytest.mark.parametrize(
    "section",
    [text("Echo", word="said"), text("search"), text("search", word="said"), text("search_later", word="said")],
)
def test_a_class_and_a_function_answer_with_their_keys(section: ImportedTextConfig) -> None:
    assert found(section) == (TextHit(title="said", text="who"),)


def test_a_class_says_what_it_is_and_is_asked_for_top_k() -> None:
    section = ImportedTextConfig(
        backend="theirs.backends:Echo", arguments={"word": "w", "times": 9}, top_k=2, price_per_call=0.5
    )
    backend = open_backend(section)
    assert (backend.name, backend.fingerprint) == ("echo", "echo-1")
    assert len(found(section)) == 2


def test_an_image_search_gets_an_image_query() -> None:
    runtime = build_runtime(SearchConfig(image=ImportedImageConfig(backend="theirs.backends:look")))
    observation = asyncio.run(runtime.image_search(ImageQuery(Image.new("RGB", (40, 20)))))
    assert [hit.title for hit in observation.hits] == ["40 wide"]


def test_a_function_has_another_fingerprint_for_other_keys_and_after_another_text_of_its_module(folder: Path) -> None:
    first = open_backend(text("search")).fingerprint
    assert open_backend(text("search")).fingerprint == first
    assert open_backend(text("search", word="x")).fingerprint != first
    with (folder / "theirs" / "backends.py").open("a") as file:
        file.write("# changed\n")
    assert open_backend(text("search")).fingerprint != first


def test_a_class_that_takes_any_key_is_given_all() -> None:
    backend: Any = open_backend(text("Anything", word=1, other=[2]))
    assert backend.keys == {"word": 1, "other": [2]}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (text("Eco", word="w"), r"search\.text\.backend: theirs\.backends has no `Eco`; did you mean `Echo`\?"),
        (text("number"), r"search\.text\.backend: theirs\.backends:number is a int, neither a class nor a function"),
        (text("Echo", wrod="w"), r"search\.text\.wrod: theirs\.backends:Echo takes no `wrod`; did you mean `word`\?"),
        (text("Echo", word="w", topk=3), r"search\.text\.topk: .* takes no `topk`; did you mean `top_k`\?"),
        (text("Echo"), r"search\.text\.word is missing: theirs\.backends:Echo needs it"),
        (text("Greedy"), r"search\.text\.top_k is the section's own key, and is not passed on: .*Greedy needs it"),
        (text("search", wrod="w"), r"search\.text\.wrod: theirs\.backends:search takes no `wrod`"),
        (text("needs_more"), r"search\.text\.word is missing: theirs\.backends:needs_more needs it"),
        (
            text("Echo", word="w", times=-1),
            r"search\.text\.backend: .*:Echo raised ValueError: times is negative \(.*backends\.py, line 11",
        ),
        (text("Nameless"), r"theirs\.backends:Nameless has no `name` and no `fingerprint`, which a backend needs"),
        (
            ImportedTextConfig(backend="theirs.backend:Echo"),
            r"search\.text\.backend: there is no module theirs\.backend \(looked for in /.* and among the installed",
        ),
        (ImportedImageConfig(backend="ours.backends:E"), r"search\.image\.backend: there is no module ours \("),
        (
            ImportedTextConfig(backend="theirs.broken:Echo"),
            r"theirs\.broken:Echo cannot be imported: ZeroDivisionError: division by zero \(.*broken\.py, line 2\)",
        ),
        (ImportedTextConfig(backend="theirs.typo:Echo"), r"cannot be imported: SyntaxError: .*typo\.py, line 1"),
        (
            ImportedTextConfig(backend="theirs.wanting:Echo"),
            r"cannot be imported: .*No module named 'no_such_library'",
        ),
    ],
)
def test_a_mistake_is_told_with_its_key(section: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_backend(section)


def test_a_free_backend_has_no_price() -> None:
    with pytest.raises(UserError, match=r"price_per_call is set, and backend theirs\.backends:search costs nothing"):
        open_backend(ImportedTextConfig(backend="theirs.backends:search", price_per_call=1.0))
