"""The house as CONTRIBUTING.md describes it: who may import whom, what no room may know, how long a file may be.

A *room* is a folder of `src/mmsearch_trl` (a sub-folder is a room of its own, and a folder's own modules are the
folder) or a module at the package's root. Imports are read from the source and not run: those under `TYPE_CHECKING`
and inside functions count as well, since whoever reads one file has to know what the other is.
"""

import ast
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import pytest
from parsed import nodes


ROOT = Path(__file__).parents[1]
PACKAGE = "mmsearch_trl"
SOURCE = ROOT / "src" / PACKAGE
FILES = sorted(SOURCE.rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 320, 60
HEADING = "## Where things lie"

Graph = Mapping[str, Collection[str]]


def module_name(path: Path) -> str:
    """`search.text.bm25` of a file below `SOURCE`; a package's `__init__` has the package's name."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_name(path): path for path in FILES}


def imported(path: Path) -> Iterator[str]:
    """Full names of what a file imports, wherever in it: `torch.nn`, and `trl.name` of `from trl import name`."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_modules(path: Path) -> set[str]:
    """The modules of ours that a file imports; a name that is no module is looked up in the module it comes from."""
    found = set()
    for name in imported(path):
        if name.split(".")[0] == PACKAGE:
            below = name.removeprefix(PACKAGE).removeprefix(".") or "__init__"
            found.add(below if below in MODULES else below.rpartition(".")[0] or "__init__")
    return found


def room(module: str) -> str:
    """`search/text` of `search.text.bm25`."""
    path = MODULES[module]
    inside = path.parent.relative_to(SOURCE).as_posix()
    return path.stem if inside == "." else inside


MODULE_GRAPH = {name: own_modules(path) for name, path in MODULES.items()}


def room_graph() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {room(module): set() for module in MODULES}
    for module, others in MODULE_GRAPH.items():
        graph[room(module)] |= {room(other) for other in others} - {room(module)}
    return graph


def reached(graph: Graph, start: str) -> set[str]:
    """What can be reached from a node over one or more arrows."""
    seen: set[str] = set()
    ahead = list(graph[start])
    while ahead:
        if (node := ahead.pop()) not in seen:
            seen.add(node)
            ahead.extend(graph[node])
    return seen


def circles(graph: Graph) -> list[list[str]]:
    """Nodes that reach each other, in groups."""
    reach = {node: reached(graph, node) for node in graph}
    groups = {tuple(sorted(other for other in reach[node] if node in reach[other])) for node in graph}
    return sorted(list(group) for group in groups if group)


def stated_order() -> list[list[str]]:
    """The rooms of CONTRIBUTING.md from top to bottom; those of one line do not import each other."""
    section = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition(f"\n{HEADING}\n")[2]
    block = re.search(r"```\w*\n(.*?)```", section, re.DOTALL)
    assert block, f"CONTRIBUTING.md has no fenced list under '{HEADING}'"
    lines = [line for line in block[1].splitlines() if line.strip() and not line.startswith(" ")]
    return [re.split(r"  +", line)[0].split(", ") for line in lines]


def arrows_up(graph: Graph, order: Iterable[Iterable[str]]) -> list[str]:
    level = {name: number for number, names in enumerate(order) for name in names}
    return sorted(f"{a} -> {b}" for a, others in graph.items() for b in others if level[a] >= level[b])


def test_no_file_imports_itself_by_way_of_others() -> None:
    assert circles(MODULE_GRAPH) == []


def test_no_room_imports_itself_by_way_of_others() -> None:
    assert circles(room_graph()) == []


def test_every_room_has_its_line_in_contributing() -> None:
    named = [name for names in stated_order() for name in names]
    assert sorted(named) == sorted(room_graph())


def test_arrows_point_downwards_only() -> None:
    assert arrows_up(room_graph(), stated_order()) == []


def test_an_arrow_up_and_a_circle_would_be_seen() -> None:
    assert arrows_up({"a": {"b"}, "b": {"a", "c"}, "c": set()}, [["a"], ["b", "c"]]) == ["b -> a", "b -> c"]
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}}) == [["b", "c"], ["d"]]


def test_core_imports_the_standard_library_and_images_only() -> None:
    names = {name.split(".")[0] for path in (SOURCE / "core").glob("*.py") for name in imported(path)}
    own = {name for path in (SOURCE / "core").glob("*.py") for name in own_modules(path)}
    assert names - sys.stdlib_module_names <= {"PIL", "packaging", PACKAGE}
    assert {room(name) for name in own} <= {"core"}


@pytest.mark.parametrize("floor", ["core", "search", "protocol", "rewards", "rollout"])
def test_trl_stays_upstairs(floor: str) -> None:
    """Neither a file of these rooms nor any that it imports names TRL."""
    modules = {name for name in MODULES if name.split(".")[0] == floor}
    everything = modules.union(*(reached(MODULE_GRAPH, name) for name in modules))
    users = [name for name in everything if any(other.split(".")[0] == "trl" for other in imported(MODULES[name]))]
    assert modules and not users


def test_no_function_takes_the_trainer() -> None:
    """What a collaborator uses is handed to it, and what it found is returned."""
    pattern = re.compile(r"trainer: \"?MMSearchGRPOTrainer|self\._trainer\b")
    assert [module_name(path) for path in FILES if pattern.search(path.read_text(encoding="utf-8"))] == []


def test_no_console_makes_pictures_of_words_between_colons() -> None:
    """What a data set, a model or a page says is printed as it is: `repo:train:` is no railway car."""
    made = re.compile(r"\bConsole\((?![^)]*emoji=False)")
    assert [module_name(path) for path in FILES if made.search(path.read_text(encoding="utf-8"))] == []


def test_no_test_fakes_a_trainer() -> None:
    """A stand-in with a trainer's name or attributes means that the function under test should take less."""
    fakes = [f"{path.relative_to(ROOT)}:{line}" for path in (ROOT / "tests").rglob("*.py") for line in _fakes(path)]
    assert fakes == []


def _fakes(path: Path) -> Iterator[int]:
    """Lines."""
    for node in nodes(path):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in STAND_INS:
            if {"args", "accelerator"} & {keyword.arg for keyword in node.keywords}:
                yield node.lineno
        elif isinstance(node, ast.ClassDef) and node.name.endswith("Trainer") and not node.bases:
            yield node.lineno


STAND_INS = {"SimpleNamespace", "Mock", "MagicMock"}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_file_and_its_functions_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
    functions = [node for node in nodes(path) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}
