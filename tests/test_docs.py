"""The pages keep their promises: what they name exists, what they tell a reader to type is understood."""

import importlib.util
import re
import runpy
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from mmsearch_trl.commands.main import parse
from mmsearch_trl.commands.search_once import search_config
from mmsearch_trl.recipe.command_line import keys_of, recipe_arguments
from mmsearch_trl.recipe.recipe import load_recipe
from mmsearch_trl.recipe.shipped import find_recipe, shipped_recipes


ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("README*.md"), *ROOT.glob("docs/*.md")])
READMES = [ROOT / "README.md", ROOT / "README.zh.md"]
REFERENCE = runpy.run_path(str(ROOT / "tools" / "write_recipe_reference.py"))
ON_CPU = {"use_cpu": True, "bf16": False}
MADE_BY_THE_READER = ("runs/", "data/", "indexes/", "mydata/")
OTHERS = {"pip", "python", "hf", "."}

_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")


def text_of(page: Path) -> str:
    """A page as a reader sees it: an image that is not there yet may be named in a comment."""
    return _COMMENT.sub("", page.read_text(encoding="utf-8"))


def commands_of(page: Path) -> Iterator[list[str]]:
    for kind, body in _BLOCK.findall(text_of(page)):
        if kind == "bash":
            for line in body.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield words


COMMANDS = [(page.name, words) for page in PAGES for words in commands_of(page)]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[" ".join(words)[:60] for _, words in COMMANDS])
def test_a_command_of_a_page_is_understood(page: str, words: list[str]) -> None:
    while "=" in words[0]:
        words = words[1:]
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert rest[0] in targets
    elif program == "mmsearch":
        check_mmsearch(rest)
    elif program == "accelerate":
        check_launch(rest)
    else:
        assert program in OTHERS, f"{page}: nobody checks the command {program}"
        for word in rest:
            assert not word.endswith(".py") or (ROOT / word).is_file()


def check_mmsearch(words: Sequence[str]) -> None:
    options = parse(words)
    if words[0] == "search":
        _, *keys = options.rest if options.image is None else ["", *options.rest]
        if options.config is None:
            search_config(None, keys_of(keys))
    elif options.takes_rest and words[0] != "vllm" and options.config is not None:
        check_recipe(options.config, keys_of(options.rest), "sft" if words[0] == "sft" else "grpo")


def check_launch(words: Sequence[str]) -> None:
    assert words[0] == "launch"
    module = words.index("-m")
    assert (ROOT / words[words.index("--config_file") + 1]).is_file()
    assert importlib.util.find_spec(words[module + 1]) is not None
    config, overrides = recipe_arguments(words[module + 2 :])
    check_recipe(config, overrides, "sft" if words[module + 1].endswith(".sft") else "grpo")


def check_recipe(path: Path, overrides: Mapping[str, Any], kind: Any) -> None:
    """The recipe is there and takes every override that is written behind it."""
    if str(path).startswith(MADE_BY_THE_READER):
        path = Path("world/grpo")
    load_recipe(find_recipe(path), {**overrides, **ON_CPU}, kind=kind).validate(check_files=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_relative_link_leads_somewhere(page: Path) -> None:
    links = [link for link in _LINK.findall(text_of(page)) if "://" not in link and not link.startswith("#")]
    assert [link for link in links if not (page.parent / link.partition("#")[0]).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_path_that_a_page_names_exists(page: Path) -> None:
    tops = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")} - {"runs", "data"}
    named = [word for word in _CODE.findall(text_of(page)) if word.partition("/")[0] in tops and "/" in word]
    assert [word for word in named if not (ROOT / word).exists()] == []


def test_every_picture_of_the_docs_is_shown() -> None:
    shown = {(page.parent / link).resolve() for page in PAGES for link in _LINK.findall(text_of(page))}
    pictures = [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".png", ".svg", ".jpg")]
    assert [path.name for path in pictures if path.resolve() not in shown] == []


def test_every_page_of_the_docs_can_be_reached_from_the_readme() -> None:
    linked = {link for page in READMES for link in _LINK.findall(text_of(page))}
    assert [page.name for page in PAGES if page.parent.name == "docs" and f"docs/{page.name}" not in linked] == []


def test_a_recipe_named_in_a_table_of_the_readme_is_shipped() -> None:
    rows = [line.split("|")[1] for line in text_of(READMES[0]).splitlines() if line.startswith("| `qwen")]
    names = [name for row in rows for name in _CODE.findall(row)]
    assert names and {f"mmsearch_r1/{name}" for name in names} <= shipped_recipes().keys()


def test_both_readmes_have_the_same_sections_commands_and_links() -> None:
    english, chinese = (text_of(page) for page in READMES)
    assert _shape(english) == _shape(chinese)
    assert list(commands_of(READMES[0])) == list(commands_of(READMES[1]))
    links = [[link for link in _LINK.findall(text) if not link.startswith("README")] for text in (english, chinese)]
    assert links[0] == [link.replace(".zh.md", ".md") for link in links[1]]


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/*.zh.md")), ids=lambda page: page.name)
def test_a_page_in_chinese_has_the_sections_and_commands_of_the_english_one(page: Path) -> None:
    other = page.with_name(page.name.replace(".zh.md", ".md"))
    assert _shape(text_of(page)) == _shape(text_of(other))
    assert list(commands_of(page)) == list(commands_of(other))
    assert f"({page.name})" in text_of(other) and f"({other.name})" in text_of(page)


@pytest.mark.parametrize("readme", READMES, ids=lambda page: page.name)
def test_the_layout_of_the_readme_names_every_room(readme: Path) -> None:
    package = ROOT / "src" / "mmsearch_trl"
    rooms = {path.name for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    [layout] = [body for kind, body in _BLOCK.findall(text_of(readme)) if kind == "text"]
    assert set(re.findall(r"^  (\w+)/ ", layout, re.MULTILINE)) == rooms


def test_both_readmes_have_the_marks_of_the_table_of_results() -> None:
    assert [page.read_text(encoding="utf-8").count("<!-- world-table -->") for page in READMES] == [2, 2]


def _shape(text: str) -> list[str]:
    """Levels of headings, kinds of code blocks, and lengths of tables, in order."""
    shape, rows = [], 0
    for line in text.splitlines():
        rows = rows + 1 if line.startswith("|") else 0
        if mark := re.match(r"#+ |```\w+|\* ", line):
            shape.append(mark[0])
        elif rows:
            shape.append("|" * line.count("|"))
    return shape


def test_the_recipe_reference_is_current() -> None:
    """Inherited keys are compared under the versions that the page was written with."""
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    rewrite = "run python tools/write_recipe_reference.py"
    assert text.startswith(REFERENCE["own_part"]()), rewrite
    if f"trl {version('trl')},\ntransformers {version('transformers')}," in text:
        assert text == REFERENCE["page"](), rewrite


def test_every_key_of_a_shipped_recipe_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for path in ROOT.glob("recipes/*/*.yaml"):
        kind = "sft" if path.stem.startswith("sft") else "grpo"
        for key, value in load_recipe(path, ON_CPU, kind=kind).values.items():
            for name in inner_keys(key, value) if key in ("search", "rollout", "reward") else [key]:
                assert f"| `{name}` |" in text, f"{path}: {name}"


@pytest.mark.parametrize("page", ["lmm_r1.md", "lmm_r1.zh.md"])
def test_our_key_for_their_flag_is_a_key(page: str) -> None:
    _, _, behind = text_of(ROOT / "docs" / page).partition("`train_ppo_ray`")
    rows = [line.split(" | ")[1] for line in behind.partition("\n## ")[0].splitlines()[2:] if line.startswith("| ")]
    named = {word.partition(":")[0] for row in rows for word in _CODE.findall(row)}
    reference = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    estimators = {"gae", "reinforce", "rloo", "reinforce_baseline", "group_norm", "dr_grpo"}
    others = {"critic", "zero3", "owner/name", "owner/name@folder", "recipes/lmm_r1/slurm.sh"} | estimators
    others |= {"--accelerate zero2", "--accelerate multi_node"}
    assert len(rows) > 40 and [key for key in named - others if f"| `{key}` |" not in reference] == []


def inner_keys(key: str, value: Any) -> Iterator[str]:
    """The dotted keys of a section, those of sections in it included."""
    if not isinstance(value, dict):
        yield key
        return
    for name, inner in value.items():
        yield from inner_keys(f"{key}.{name}", inner)
