"""What every test may use, and how tests are dealt to processes.

The garbage collector rests while modules are imported, and never looks at them again: that is a third of the time of
collection, and trainers collect garbage several times in a run.
Hypothesis runs without a deadline: on a busy machine the first call of a test is slow for reasons of its own.
`tests` itself is importable, for `tiny.py`.
"""

import atexit
import gc
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from hypothesis import settings


if TYPE_CHECKING:
    from forks import Forks
    from servers import Servers, Trainers


gc.disable()

sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--vectors",
        type=Path,
        default=Path(__file__).parent / "conformance" / "vectors",
        metavar="DIR",
        help="folder of conformance vectors that tests/conformance runs (default: those of the repository)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Groups begin, in the order of `_GROUPS`; then files with slow tests, that no process is left with a long one at
    the end."""
    groups = {item.nodeid: group for item in items if (group := _group(item)) is not None}
    if (worker := getattr(config, "workerinput", None)) is not None:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        rank: dict[str | None, int] = {group: number for number, group in enumerate(_GROUPS)}
        items.sort(key=lambda item: rank.get(groups.get(item.nodeid), len(rank) + (item.path not in slow)))
        written = Path(f"{worker['groups']}.{worker['workerid']}")
        written.write_text(json.dumps(groups))
        written.replace(worker["groups"])


_GROUPS = ("servers", "forks")
"""Tests that are for one process of several: what they share starts once."""


def _group(item: pytest.Item) -> str | None:
    assert isinstance(item, pytest.Function)
    params = item.callspec.params if hasattr(item, "callspec") else {}
    if "servers" in item.fixturenames and params.get("build", params.get("mode", "server")) == "server":
        return "servers"
    return "forks" if "forks" in item.fixturenames else None


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@cache
def _groups_file() -> Path:
    """Where processes that run tests tell the one that deals them the group of each: of marks, xdist's own way, it
    knows nothing from pytest 9.2 on."""
    folder = Path(tempfile.mkdtemp(prefix="mmsearch-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder / "groups.json"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["groups"] = str(_groups_file())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `--dist loadgroup`: a file at a time, for its fixtures' sake, but for groups; in the order above."""
    from xdist.scheduler import LoadGroupScheduling

    class ByFile(LoadGroupScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return self._groups.get(nodeid) or nodeid.partition("::")[0]

        @cached_property
        def _groups(self) -> dict[str, str]:
            return json.loads(_groups_file().read_text())

    if config.getoption("dist") != "loadgroup":
        return None
    config.option.loadscopereorder = False
    return ByFile(config, log)


def _once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first process to ask for it makes for all."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, made = root / name, root / f"{name}.made"
    with FileLock(root / f"{name}.lock"):
        if not made.exists():
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Servers"]:
    """Real vLLM servers, ended with the session."""
    from servers import Servers

    servers = Servers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.stop()


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Forks"]:
    """Real processes of the commands that import nothing."""
    from forks import Forks

    forks = Forks(tmp_path_factory.mktemp("forks"))
    yield forks
    forks.stop()


@pytest.fixture(
    params=["transformers", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("server", "colocate"))]
)
def build(request: pytest.FixtureRequest, servers: "Servers") -> Iterator["Trainers"]:
    """Builds trainers on each kind of engine in turn; they are closed with the test."""
    from servers import Trainers, environment

    with environment():
        trainers = Trainers(request.param, servers)
        yield trainers
        trainers.close()


@pytest.fixture(scope="session")
def world_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `mmsearch world` writes: `world/` and the untrained `model/`; not to be changed."""
    from mmsearch_trl.commands.main import main

    def make(home: Path) -> None:
        assert main(["world", "--seed", "0", "--out", str(home), "--demonstrations", "40"]) == 0

    return _once(tmp_path_factory, "home", make)


@pytest.fixture(scope="session")
def taught(world_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that learned `runs.lessons` by heart through `mmsearch sft`; not to be changed."""
    from runs import lessons, sft_arguments, write_jsonl

    from mmsearch_trl.recipe.command_line import recipe_arguments
    from mmsearch_trl.sft import main

    def make(out: Path) -> None:
        file = write_jsonl(world_home / "world" / "taught.jsonl", lessons(world_home / "world"))
        arguments = sft_arguments(world_home, out, train_files=file, num_train_epochs=80, learning_rate=3e-3)
        main(*recipe_arguments(arguments))

    return _once(tmp_path_factory, "taught", make)
