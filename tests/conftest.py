"""What every test may use, and how tests are dealt to processes.

The garbage collector rests while modules are imported, and never looks at them again: that is a third of the time of
collection, and trainers collect garbage several times in a run.
Hypothesis runs without a deadline: on a busy machine the first call of a test is slow for reasons of its own.
`tests` itself is importable, for `tiny.py`.
"""

import gc
import os
import sys
from collections.abc import Callable, Iterator
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
    """Tests on the shared servers are for one process of several, and those on forks of one process for another: what
    they share starts once. They begin; then files with slow tests, that no process is left with a long one at the end.
    """
    order = dict.fromkeys(items, 3)
    for item in items:
        if _uses_servers(item):
            item.add_marker(pytest.mark.xdist_group("servers"))
            order[item] = 0
        elif "forks" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("forks"))
            order[item] = 1
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: min(order[item], 2 + (item.path not in slow)))


def _uses_servers(item: pytest.Item) -> bool:
    assert isinstance(item, pytest.Function)
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return "servers" in item.fixturenames and params.get("build", params.get("mode", "server")) == "server"


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `--dist loadgroup`: a file at a time, for its fixtures' sake, but for groups; in the order above."""
    from xdist.scheduler import LoadGroupScheduling

    class ByFile(LoadGroupScheduling):
        def _split_scope(self, nodeid: str) -> str:
            group = super()._split_scope(nodeid)
            return group if group != nodeid else nodeid.partition("::")[0]

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
