"""Real processes of the commands without their seconds of imports: forks of one process that has imported everything.

A fork runs a module as `python -m` does, with its own standard streams, working directory and environment, and ends
with its own exit status. `plant` is Python that it executes before, such as a defect.
"""

import contextlib
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple


_MOST_SECONDS = 100


class Done(NamedTuple):
    """How a process ended."""

    status: int
    out: str
    err: str


class Forks:
    """Starts processes; `home` is a folder for what they print."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._parent = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )

    def run(
        self, module: str, *arguments: str, folder: Path, plant: str = "", environment: Mapping[str, str] | None = None
    ) -> Done:
        """Run `python -m module arguments` in `folder` to its end."""
        out, err = self._home / "out", self._home / "err"
        job = {
            "module": module,
            "arguments": arguments,
            "folder": str(folder),
            "plant": plant,
            "environment": dict(environment or {}),
            "out": str(out),
            "err": str(err),
        }
        assert self._parent.stdin is not None and self._parent.stdout is not None
        print(json.dumps(job), file=self._parent.stdin, flush=True)
        status = int(self._parent.stdout.readline())
        return Done(status, out.read_text(errors="replace"), err.read_text(errors="replace"))

    def stop(self) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait(30)


def _serve() -> None:
    """Fork for every job on standard input; the status of each goes to standard output."""
    statuses, sys.stdout = sys.stdout, sys.stderr
    for name in ("train", "sft", "evaluate", "search.index_build", "search.index_info", "search.server", "world.demo"):
        importlib.import_module(f"mmsearch_trl.{name}")
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_run(job))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=statuses, flush=True)


def _run(job: Mapping[str, Any]) -> int:
    signal.alarm(_MOST_SECONDS)
    with _streams(job["out"], job["err"]):
        try:
            os.chdir(job["folder"])
            os.environ.update(job["environment"])
            exec(job["plant"], {})
            sys.argv = [job["module"], *job["arguments"]]
            warnings.filterwarnings("ignore", message=".*found in sys.modules.*", category=RuntimeWarning)
            runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            return 1
        return 0


@contextlib.contextmanager
def _streams(out: str, err: str) -> Iterator[None]:
    """The process's own standard streams, flushed at the end."""
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    _serve()
