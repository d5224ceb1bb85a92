"""Every flag that a message or a page tells people to type is one that its command takes.

The command is the last program named before the flag in the same text, else one of those that the file is about.
Blocks of commands are read whole by `test_docs.py`.
"""

import argparse
import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from accelerate.commands.launch import launch_command_parser
from parsed import nodes
from test_docs import PAGES, REFERENCE, ROOT, text_of

from mmsearch_trl.commands.main import parser


SOURCE = ROOT / "src" / "mmsearch_trl"
FLAG = re.compile(r"(?<![\w-])--([a-z][\w.-]*\w)(?![\w-])")
CODE = re.compile(r"```\w*\n.*?^```$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
OTHERS = ("hf", "curl", "pip", "modelscope")
PROGRAM = re.compile(
    r"mmsearch (\w+)|(accelerate launch|vllm serve)|python (?:-m )?(benchmarks[./]\w+)|\b(" + "|".join(OTHERS) + r")\b"
)
PLACEHOLDERS = {"flag", "key", "name", "section.key", "no-enable-x", "mgt.learning_rate"}
EVERYWHERE = {"help", "version"}
RUNS = ("train", "sft", "eval")
ANY = ("any",)

# What a file's texts are about, where they do not say; the longest beginning of its path counts.
ABOUT: dict[str, tuple[str, ...]] = {
    "": RUNS,
    "core": ANY,
    "commands/main": ANY,
    "commands/parser": ("serve",),
    "commands/doctor": ("doctor",),
    "commands/launch": ("accelerate launch",),
    "commands/runs": RUNS,
    "commands/ask_once": ("ask",),
    "commands/cache_upkeep": ("cache",),
    "commands/prefetch": ("cache",),
    "commands/search_once": ("search",),
    "engine/vllm": ("vllm serve", "vllm"),
    "rewards": ("serve", *RUNS),
    "search": ("index", "serve", "search"),
    "sokoban": ("data",),
    "stages": ("stages", *RUNS),
    "trainer/checks": ("vllm serve",),
    "trainer/sampler": ("vllm serve", "vllm"),
    "world": ("demo", "world"),
}
OF_UPSTREAM = ("lmm_r1.md", "lmm_r1.zh.md")
"""Pages that set flags of another program beside keys of ours."""
PAGES_ABOUT = {"vllm.md": (*ANY, "vllm serve"), "performance.md": ("benchmarks.gpu",)}
ELSEWHERE = {("data.md", "dataset"), ("data.zh.md", "dataset")}  # of modelscope, whose other flag stands before it


class Typed(NamedTuple):
    """A flag in a text of a file, and the commands of which one is to take it."""

    flag: str
    commands: tuple[str, ...]
    file: str


def typed_in(text: str, file: str, about: tuple[str, ...]) -> Iterator[Typed]:
    programs = [(match.end(), next(filter(None, match.groups()))) for match in PROGRAM.finditer(text)]
    for match in FLAG.finditer(text):
        before = [name for end, name in programs if end <= match.start() and "`" not in text[end : match.start()]]
        if match[1] not in PLACEHOLDERS | EVERYWHERE:
            yield Typed(match[1], (before[-1],) if before else about, file)


def of_messages() -> Iterator[Typed]:
    for path in sorted(SOURCE.rglob("*.py")):
        file = path.relative_to(SOURCE).as_posix()
        declared = {
            id(argument)
            for node in nodes(path)
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
            for argument in node.args
        }
        command = path.stem if path.parent.name == "commands" else "none"
        about = ABOUT[max((start for start in ABOUT if file.startswith(start)), key=len)]
        if command in COMMANDS:
            about = (command, *(RUNS if command in ("check", "tiny") else ()))
        for node in nodes(path):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in declared:
                yield from typed_in(node.value, file, about)


def of_pages() -> Iterator[Typed]:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        if page.name in OF_UPSTREAM:
            continue
        for code in CODE.findall(text_of(page)):
            for each in typed_in(code, page.name, PAGES_ABOUT.get(page.name, ANY)):
                if (each.file, each.flag) not in ELSEWHERE:
                    yield each


def options_of(reader: argparse.ArgumentParser) -> set[str]:
    """The long options of a command and of its own commands."""
    found = {option.removeprefix("--") for action in reader._actions for option in action.option_strings}
    inner = [action for action in reader._actions if isinstance(action, argparse._SubParsersAction)]
    return found.union(*(options_of(each) for action in inner for each in action.choices.values()))


def _commands() -> dict[str, set[str]]:
    [inner] = [action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)]
    found = {name: options_of(each) for name, each in inner.choices.items()}
    keys = set(re.findall(r"^\| `([\w.]+)` \|", REFERENCE["page"](), re.MULTILINE))
    for name in (*RUNS, "check", "tiny", "cache", "ask", "serve"):
        found[name] |= keys
    found["search"] |= keys | {key.removeprefix("search.") for key in keys}
    found["accelerate launch"] = options_of(launch_command_parser()) | found["train"]
    return found


COMMANDS = _commands()
TYPED = sorted({*of_messages(), *of_pages()})
OF_VLLM = [each for each in TYPED if {"vllm", "vllm serve"} & set(each.commands)]
OWN = [each for each in TYPED if each not in OF_VLLM]


def takes(command: str, flag: str) -> bool:
    if command in OTHERS:
        return True
    if command.startswith("benchmarks"):
        return f'"--{flag}"' in source_of(command.replace("/", "."))
    names = [command] if command != "any" else COMMANDS
    if "stages" in names and flag.partition(".")[2] in COMMANDS["train"]:  # --<stage>.<key>
        return True
    return any(flag.replace("-", "_") in COMMANDS[name] or flag in COMMANDS[name] for name in names)


def source_of(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    found = Path(spec.origin)
    return "".join(path.read_text() for path in (found.parent.glob("*.py") if found.stem == "__init__" else [found]))


def test_there_are_flags_of_every_kind() -> None:
    files = {each.file for each in OWN}
    assert {"train.py", "trainer/run_records.py", "search/index/rows.py", "README.md", "search.md"} <= files
    assert len(OWN) > 100 and len(OF_VLLM) > 5


@pytest.mark.parametrize("typed", OWN, ids=lambda each: f"{each.file}: {each.flag}")
def test_its_command_takes_a_flag(typed: Typed) -> None:
    assert any(takes(command, typed.flag) for command in typed.commands), typed


@pytest.mark.slow
def test_vllm_takes_the_flags_that_messages_tell_people_to_give_it() -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser  # seconds
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    known = options_of(make_arg_parser(FlexibleArgumentParser()))
    known |= {"no-" + name for name in known}
    for typed in OF_VLLM:
        ours = [command for command in typed.commands if command != "vllm serve"]
        assert typed.flag.replace("_", "-") in known or any(takes(command, typed.flag) for command in ours), typed


def test_a_flag_is_asked_of_the_program_that_is_named_before_it() -> None:
    text = "run `mmsearch index text FILE --langauge zh`, or accelerate launch --num_processes 2; hf --local-dir x"
    found = [(each.flag, each.commands) for each in typed_in(text, "x", RUNS)]
    assert found == [
        ("langauge", ("index",)),
        ("num_processes", ("accelerate launch",)),
        ("local-dir", ("hf",)),
    ]
    assert not takes("index", "langauge") and takes("index", "language")
    assert typed_in("give --model_name_or_path", "x", RUNS).__next__().commands == RUNS
