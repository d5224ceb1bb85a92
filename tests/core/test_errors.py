"""The error model of `core/errors.py`: what `run_script` tells in one line, and what shows its traceback.

`test_mistakes.py` and `test_defects.py` go through real command lines.
"""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forks import Forks

from mmsearch_trl.core.boundaries import loading, optional, reading, writing
from mmsearch_trl.core.errors import (
    ContextOverflow,
    EngineError,
    HubError,
    SearchError,
    SearchLost,
    UserError,
    VersionError,
)
from mmsearch_trl.core.observation import FailureKind
from mmsearch_trl.core.script import run_script
from mmsearch_trl.data.rows import RowError
from mmsearch_trl.engine.vllm_client import ServerUnavailable


NO_RECIPE = (
    "mmsearch: error: recipe not found: gone.yaml: there is no such file, and none is shipped under this name; "
    "`mmsearch recipes` lists those that are shipped\n"
)


def raising(error: BaseException) -> Callable[[], None]:
    def script() -> None:
        raise error

    return script


@pytest.mark.parametrize(
    "error",
    [
        UserError("say\n what"),
        RowError(Path("say"), "what", "is wrong"),
        VersionError("say what"),
        HubError("say what"),
        EngineError("say what"),
        ContextOverflow("say what"),
        ServerUnavailable("say what"),
        SearchLost("say what"),
        OSError(errno.ENOSPC, "No space left on device: say what"),
        PermissionError(errno.EACCES, "Permission denied: say what", "file"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_person_can_put_right_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(raising(error)) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("mmsearch: error: ") and "say" in line and "what" in line


@pytest.mark.parametrize(
    "error",
    [
        ValueError("zip() argument 2 is shorter than argument 1"),
        TypeError(),
        KeyError("key"),
        RuntimeError(),
        ImportError(),
        AssertionError(),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "manifest.json"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        SearchError(FailureKind.TIMEOUT, "nobody made a value of it"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_anything_else_is_a_defect_and_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        run_script(raising(error))
    assert caught.value is error


def test_a_script_that_ends_well_has_status_0() -> None:
    assert run_script(lambda: None) == 0


def test_the_system_s_no_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone: cannot be read: No such file or directory"), reading("else"):
        (tmp_path / "gone").read_bytes()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/x: cannot be written: Not a directory"), writing("else"):
        (tmp_path / "file" / "x").write_bytes(b"")
    with pytest.raises(UserError, match=r"^out: cannot be written: No space left on device"), writing("out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # of a write, which does not know its file


def test_reading_and_writing_take_the_system_s_no_alone() -> None:
    for boundary in (reading("file"), writing("file")):
        with pytest.raises(ValueError, match="invalid literal") as caught, boundary:
            int("x")
        assert not isinstance(caught.value, UserError)


def test_what_a_library_says_of_a_model_or_a_package_names_it() -> None:
    with pytest.raises(UserError, match=r"the model 'agent' cannot be loaded: gone"), loading("the model", "agent"):
        raise OSError("gone")
    told = r"plotting needs .*No module named 'gone'.* pip install 'mmsearch-trl\[plot\]'"
    with pytest.raises(UserError, match=told), optional("plotting", "plot"):
        import gone  # noqa: F401  # pyright: ignore[reportMissingImports]


def real(folder: Path, *arguments: str, plant: str = "") -> tuple[int, str]:
    """Status and standard error of a process that imports everything itself; `plant` is executed before."""
    (folder / "sitecustomize.py").write_text(plant)
    paths = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": paths},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr


PLANT = "import mmsearch_trl.recipe.layers as m; m._read = lambda _: list(zip([1], [], strict=True))"


def test_the_installed_command_tells_them_apart(tmp_path: Path) -> None:
    command = ("-m", "mmsearch_trl.commands.main", "search", "tower", "--config", "gone.yaml")
    assert real(tmp_path, *command) == (1, NO_RECIPE)
    status, told = real(tmp_path, *command[:-1], "world/grpo", plant=PLANT)
    assert status == 1 and told.startswith("Traceback") and "mmsearch: error" not in told
    assert told.splitlines()[-1] == "ValueError: zip() argument 2 is shorter than argument 1"


@pytest.mark.slow
def test_the_training_script_tells_them_apart(forks: Forks, tmp_path: Path) -> None:
    command = ("mmsearch_trl.train", "--config", "gone.yaml")
    done = forks.run(*command, folder=tmp_path)
    assert (done.status, done.err) == (1, NO_RECIPE)
    done = forks.run(*command[:-1], "world/grpo", folder=tmp_path, plant=PLANT)
    assert done.status == 1 and "Traceback" in done.err and "mmsearch: error" not in done.err
    assert done.err.splitlines()[-1] == "ValueError: zip() argument 2 is shorter than argument 1"
