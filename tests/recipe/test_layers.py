"""`extends`, overrides, and where a mistake in either is said to stand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.recipe.layers import Layers


Files = Mapping[str, str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(files: Files) -> None:
    for name, text in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def layers(path: str = "a.yaml", overrides: Mapping[str, Any] | None = None) -> Layers:
    found = Layers()
    found.add_file(Path(path))
    found.add_keys(overrides or {})
    return found


BASE = """
seed: 1
files: [a, b]
rollout: {max_turns: 3, max_turn_tokens: 64}
search:
  image: {backend: index, path: images, top_k: 5}
  text: {backend: bm25, path: texts, top_k: 3}
"""


def test_a_recipe_takes_all_of_another_and_changes_what_it_names(folder: Path) -> None:
    write(
        {"a.yaml": "extends: base/b.yaml\nseed: 2\nfiles: [c]\nrollout: {max_turns: 2}\nnew: 1", "base/b.yaml": BASE}
    )
    values = layers().values
    assert values["rollout"] == {"max_turns": 2, "max_turn_tokens": 64}
    assert (values["seed"], values["files"], values["new"]) == (2, ["c"], 1)
    assert values["search"]["text"] == {"backend": "bm25", "path": "texts", "top_k": 3}
    assert "extends" not in values


def test_a_chain_is_read_from_its_end_and_each_name_starts_at_its_own_folder(folder: Path) -> None:
    write({"a.yaml": "extends: one/b.yaml\nx: 1", "one/b.yaml": "extends: two/c.yaml\nx: 2\ny: 2"})
    write({"one/two/c.yaml": "extends: ../../d.yaml\nx: 3\ny: 3\nz: 3", "d.yaml": "x: 4\ny: 4\nz: 4\nw: 4"})
    found = layers()
    assert found.values == {"x": 1, "y": 2, "z": 3, "w": 4}
    places = {key: found.place(key) for key in "xyzw"}
    assert places == {"x": "a.yaml", "y": "one/b.yaml", "z": "one/two/c.yaml", "w": "one/two/../../d.yaml"}


@pytest.mark.parametrize(
    ("change", "section"),
    [
        ("{path: other}", {"backend": "bm25", "path": "other", "top_k": 3}),
        ("{backend: bm25, top_k: 9}", {"backend": "bm25", "path": "texts", "top_k": 9}),
        ("{backend: retriever, url: u}", {"backend": "retriever", "url": "u"}),
        ("null", None),
    ],
)
def test_a_section_is_merged_until_its_backend_becomes_another(folder: Path, change: str, section: Any) -> None:
    write({"a.yaml": f"extends: b.yaml\nsearch: {{text: {change}}}", "b.yaml": BASE})
    values = layers().values["search"]
    assert values["text"] == section
    assert values["image"] == {"backend": "index", "path": "images", "top_k": 5}


def test_keys_of_the_command_line_may_come_before_the_backend_they_belong_to(folder: Path) -> None:
    write({"a.yaml": BASE})
    overrides = {"search.text.url": "u", "search.text.backend": "retriever", "search.text.top_k": 1}
    for order in (overrides, dict(reversed(overrides.items()))):
        text = layers(overrides=order).values["search"]["text"]
        assert text == {"backend": "retriever", "url": "u", "top_k": 1}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.yaml": "extends: gone.yaml"}, "a.yaml: extends: recipe not found: gone.yaml"),
        ({"a.yaml": "extends: [b.yaml]"}, r"a.yaml: `extends` names one other recipe, got \['b.yaml'\]"),
        ({"a.yaml": "extends: ./a.yaml"}, "a.yaml: extends: recipes extend each other in a circle: a.yaml -> a.yaml"),
        (
            {"a.yaml": "extends: b.yaml", "b.yaml": "extends: c/../c.yaml", "c.yaml": "extends: a.yaml", "c/x": ""},
            r"c/\.\./c.yaml: extends: .* in a circle: a.yaml -> b.yaml -> c/\.\./c.yaml -> c/\.\./a.yaml",
        ),
        ({"a.yaml": "extends: b.yaml", "b.yaml": "x: [1"}, "b.yaml, line 1: not readable as YAML"),
        ({"a.yaml": "extends: b.yaml", "b.yaml": "- 1"}, "b.yaml: a recipe is a mapping"),
    ],
)
def test_what_cannot_be_extended_is_named(folder: Path, files: Files, message: str) -> None:
    write(files)
    with pytest.raises(UserError, match=message):
        layers()


def test_a_key_is_where_it_was_last_written(folder: Path) -> None:
    write({"a.yaml": "extends: b.yaml\nseed: 2\nrollout: {max_turns: 2}", "b.yaml": BASE})
    found = layers(overrides={"rollout.max_turn_tokens": 5, "search.text": {"backend": "ddgs"}, "lr": 1})
    places = {
        "seed": "a.yaml",
        "files": "b.yaml",
        "rollout.max_turns": "a.yaml",
        "rollout.max_turn_tokens": "command line (--rollout.max_turn_tokens)",
        "search.image.path": "b.yaml",
        "search.image.missing": "b.yaml",
        "search.text.path": "command line (--search.text)",  # what base.yaml said of another backend means nothing
        "lr": "command line (--lr)",
    }
    assert {key: found.place(key) for key in places} == places
    assert found.place("nowhere") is None


PLAIN = st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2))
NAMES = st.sampled_from(["a", "b", "c"])
TREES = st.dictionaries(NAMES, st.recursive(PLAIN, lambda inner: st.dictionaries(NAMES, inner, max_size=3)))


@given(TREES, TREES)
def test_the_later_layer_has_the_last_word_and_the_earlier_one_all_others(one: Any, two: Any) -> None:
    found = Layers()
    found.add("one", one)
    found.add("two", two)

    def check(values: Any, under: Any, over: Any, prefix: str) -> None:
        assert values.keys() == under.keys() | over.keys()
        for key, value in values.items():
            place = found.place(f"{prefix}{key}")
            if isinstance(over.get(key), dict) and isinstance(under.get(key), dict):
                check(value, under[key], over[key], f"{prefix}{key}.")
            elif key in over:
                assert value == over[key] and place == "two"
            else:
                assert value == under[key] and place == "one"

    check(found.values, one, two, "")


@given(TREES)
def test_a_layer_is_not_changed_by_those_above_it(tree: Any) -> None:
    before = repr(tree)
    found = Layers()
    found.add("one", tree)
    found.add("two", {"a": {"b": 1}, "b": {"c": 2}})
    assert repr(tree) == before
