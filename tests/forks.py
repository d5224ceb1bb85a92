"""Real processes of the commands without their seconds of imports: forks of one process that has imported everything.

A fork runs a module as `python -m` does, with its own standard streams, working directory and environment, and ends
with its own exit status. `plant` is Python that it executes before, such as a defect.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env


_MOST_SECONDS = 100


class Done(NamedTuple):
    """How a process ended."""

    status: int
    out: str
    err: str


class _Job(NamedTuple):
    module: str
    arguments: tuple[str, ...]
    folder: str
    plant: str
    environment: dict[str, str]


TWO = (
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
)
"""Two processes on a CPU, each with the whole model."""


class Forks:
    """Starts processes; `home` is a folder for what they print."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._parent = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ
            | {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"},
        )

    def run(
        self, module: str, *arguments: str, folder: Path, plant: str = "", environment: Mapping[str, str] | None = None
    ) -> Done:
        """Run `python -m module arguments`, or a script by its path, in `folder` to its end."""
        return self._run([_Job(module, arguments, str(folder), plant, dict(environment or {}))])[0]

    def together(self, module: str, *arguments: Sequence[str], folder: Path) -> list[Done]:
        """Run `python -m module` at once with each of several arguments; when one fails, the others are ended."""
        return self._run([_Job(module, tuple(each), str(folder), "", {}) for each in arguments])

    def launch(self, options: Sequence[str], module: str, *arguments: str, folder: Path) -> None:
        """What `accelerate launch options -m module arguments` runs, or a script by its path; all processes must end
        well. When one does not, the others are ended.

        Args:
            options: Those that name the processes, `TWO` for example.
        """
        parsed = launch_command_parser().parse_args([*options, "--main_process_port", "0", module, *arguments])
        if parsed.config_file:
            parsed, _, _ = _validate_launch_command(parsed)
        count = int(parsed.num_processes)
        made = prepare_multi_gpu_env(parsed)  # "None" is what nobody said
        given = {key: value for key, value in made.items() if value not in ("None", os.environ.get(key))}
        given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(parsed.main_process_port)}
        given |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        ranks = [given | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        done = self._run([_Job(module, arguments, str(folder), "", rank) for rank in ranks])
        failed = [each for each in done if each.status not in (0, -signal.SIGKILL)] or done
        assert [each.status for each in done] == [0] * count, failed[0].err[-4000:]

    def _run(self, jobs: list["_Job"]) -> list[Done]:
        assert self._parent.stdin is not None and self._parent.stdout is not None
        streams = [(self._home / f"out{number}", self._home / f"err{number}") for number in range(len(jobs))]
        for path in [path for pair in streams for path in pair]:
            path.write_bytes(b"")
        lines = [
            job._asdict() | {"out": str(out), "err": str(err)} for job, (out, err) in zip(jobs, streams, strict=True)
        ]
        print(json.dumps(lines), file=self._parent.stdin, flush=True)
        statuses = json.loads(self._parent.stdout.readline())
        return [
            Done(status, out.read_text(errors="replace"), err.read_text(errors="replace"))
            for status, (out, err) in zip(statuses, streams, strict=True)
        ]

    def stop(self) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait(120)


def _serve() -> None:
    """Fork for every job on standard input; the status of each goes to standard output."""
    statuses, sys.stdout = sys.stdout, sys.stderr
    gc.disable()
    for name in ("train", "sft", "evaluate", "search.index_build", "search.index_info", "search.server", "world.demo"):
        importlib.import_module(f"mmsearch_trl.{name}")
    gc.freeze()  # what was imported is never garbage, and a child that looks at it would copy it
    gc.enable()
    for line in sys.stdin:
        children = {_forked(job): number for number, job in enumerate(json.loads(line))}
        ended = dict.fromkeys(children.values(), 0)
        while children:
            child, status = os.wait()
            ended[children.pop(child)] = os.waitstatus_to_exitcode(status)
            if status:  # the others would wait for it
                for other in children:
                    os.kill(other, signal.SIGKILL)
        print(json.dumps(list(ended.values())), file=statuses, flush=True)


def _forked(job: Mapping[str, Any]) -> int:
    """The process that does it."""
    child = os.fork()
    if child == 0:
        os._exit(_run(job))
    return child


def _run(job: Mapping[str, Any]) -> int:
    signal.alarm(_MOST_SECONDS)
    with _streams(job["out"], job["err"]):
        try:
            os.chdir(job["folder"])
            os.environ.update(job["environment"])
            exec(job["plant"], {})
            sys.argv = [job["module"], *job["arguments"]]
            warnings.filterwarnings("ignore", message=".*found in sys.modules.*", category=RuntimeWarning)
            if job["module"].endswith(".py"):
                runpy.run_path(job["module"], run_name="__main__")
            else:
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
