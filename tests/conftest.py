"""The `--vectors` option; pytest reads options only from a conftest that it loads before it collects.

Hypothesis runs without a deadline: on a busy machine the first call of a test is slow for reasons of its own.
`tests` itself is importable, for `tiny.py`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings


if TYPE_CHECKING:
    from servers import Servers, Trainers


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


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Servers"]:
    """Real vLLM servers, ended with the session."""
    from servers import Servers

    servers = Servers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.stop()


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

    home = tmp_path_factory.mktemp("home")
    assert main(["world", "--seed", "0", "--out", str(home), "--demonstrations", "40"]) == 0
    return home


@pytest.fixture(scope="session")
def taught(world_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that learned `runs.lessons` by heart through `mmsearch sft`; not to be changed."""
    from runs import lessons, sft_arguments, write_jsonl

    from mmsearch_trl.sft import main

    out = tmp_path_factory.mktemp("taught")
    file = write_jsonl(world_home / "world" / "taught.jsonl", lessons(world_home / "world"))
    main(sft_arguments(world_home, out, train_files=file, num_train_epochs=80, learning_rate=3e-3))
    return out
