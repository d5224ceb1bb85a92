"""YAML as people write it: what would be lost in silence is refused, by file and line."""

from pathlib import Path

import pytest

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.protocol.reply_templates import ReplyTemplates
from mmsearch_trl.protocol.yaml_text import read_yaml
from mmsearch_trl.recipe.command_line import keys_of
from mmsearch_trl.recipe.layers import Layers


@pytest.mark.parametrize(
    ("text", "key", "line", "first"),
    [
        ("seed: 1\nlearning_rate: 1\nseed: 2\n", "seed", 3, 1),
        ("rollout:\n  max_turns: 2\n  max_turns: 3\n", "max_turns", 3, 2),
        ("search: {text: {top_k: 1, backend: bm25, top_k: 2}}", "top_k", 1, 1),
        ("- a: 1\n  'a': 2\n", "a", 2, 1),
        ("yes: 1\non: 2\n", "True", 2, 1),
        ("base: &b {x: 1}\none: {<<: *b, y: 1, y: 2}\n", "y", 2, 2),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_both_lines(text: str, key: str, line: int, first: int) -> None:
    with pytest.raises(UserError) as refused:
        read_yaml(text, "recipe.yaml")
    assert str(refused.value).startswith(f"recipe.yaml, line {line}: ")
    assert f"the key '{key}' stands twice, here and in line {first}" in str(refused.value)


def test_a_key_over_one_that_is_merged_in_does_not_stand_twice() -> None:
    assert read_yaml("base: &b {x: 1, z: 3}\none: {<<: *b, x: 2}", "here")["one"] == {"x": 2, "z": 3}


@pytest.mark.parametrize("open_, close", [("[", "]"), ("{a: ", "}"), ("- ", ""), ("{", "}")])
@pytest.mark.parametrize("depth", [51, 3000, 50_000])
def test_what_is_nested_too_deep_is_refused(open_: str, close: str, depth: int) -> None:
    with pytest.raises(UserError, match="nested more than 50 deep") as refused:
        read_yaml(open_ * depth + "1" + close * depth, "recipe.yaml")
    assert len(str(refused.value)) < 500


def test_what_is_nested_less_is_read() -> None:
    assert read_yaml("[" * 40 + "]" * 40, "here") == eval("[" * 40 + "]" * 40)


@pytest.mark.parametrize(
    "text", ["a: [1", "a: b: c", "\tx: 1", "!!python/object:os.system {}", "a: 2020-13-45", "\x00"]
)
def test_what_is_no_yaml_is_told_in_a_bounded_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^recipe\.yaml.*: not readable as YAML: ") as refused:
        read_yaml(text, "recipe.yaml")
    assert len(str(refused.value)) < 500


def test_recipes_replies_and_command_lines_are_read_so(tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text("opening: a\nopening: b\n")
    for read in (lambda: Layers().add_file(file), lambda: ReplyTemplates.load(file)):
        with pytest.raises(UserError, match=r"file\.yaml, line 2: .*'opening' stands twice"):
            read()
    with pytest.raises(UserError, match=r"command line \(--rollout\), line 1: .*'a' stands twice"):
        keys_of(["--rollout", "{a: 1, a: 2}"])
    with pytest.raises(UserError, match=r"command line \(--rollout\), line 1: .*nested more than"):
        keys_of(["--rollout", "[" * 3000])
