"""One process that works on what strangers made (`worker.py`), from the side that starts and kills it."""

import os
import subprocess
import sys
import threading
from contextlib import suppress

from mmsearch_trl.core.worker import receive, send


STARTING_SECONDS = 30.0
"""That its first job may take: the libraries are loaded in it."""
_INHERITED = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "SYSTEMROOT", "TMPDIR")
"""Of the environment, what a worker gets: no key is among it."""
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Each thread of a numeric library takes address space, of which there is so much and no more."""


class WorkerProcess:
    """A process that is started at once. Its methods block.

    Args:
        function: `package.module:name`, of bytes to bytes.
        memory: Bytes of address space that it may take.
    """

    def __init__(self, function: str, memory: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mmsearch_trl.core.worker", function, str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _INHERITED if name in os.environ} | _ONE_THREAD,
        )

    def ask(self, job: bytes) -> bytes:
        """
        Raises:
            EOFError, OSError: the process died of it, or was killed.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        send(self._process.stdin, job)  # pyright: ignore[reportArgumentType]
        return receive(self._process.stdout)  # pyright: ignore[reportArgumentType]

    def ask_within(self, job: bytes, seconds: float) -> bytes | None:
        """What the function makes of a job; None where it took longer or died of it, and then the process is gone."""
        timer = threading.Timer(seconds, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            answer = self.ask(job)
        except (EOFError, OSError):
            self.kill()
            return None
        finally:
            timer.cancel()
        return answer

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError, AttributeError):
                stream.close()  # pyright: ignore[reportOptionalMemberAccess]
