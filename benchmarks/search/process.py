"""A server as a process of its own, and the memory it takes."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


STARTS_WITHIN_S = 300
_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""As `mmsearch serve` sets it, for the plain server too: with it both are faster."""


@dataclass(frozen=True, slots=True)
class Server:
    url: str
    pid: int
    start_s: float

    def memory(self) -> dict[str, float] | None:
        """Megabytes that are resident, and those of them that are no file's; None where the system does not say."""
        status = Path(f"/proc/{self.pid}/status")
        if not status.exists():
            return None
        found = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines() if ":" in line)
        names = {"resident_mb": "VmRSS", "anonymous_mb": "RssAnon"}
        return {name: round(int(found[field].split()[0]) / 1e3, 1) for name, field in names.items()}


@contextmanager
def served(module: str, arguments: Sequence[str], port: int, log: Path) -> Iterator[Server]:
    """Start `python -m module arguments --port port`; it answers `/retrieve` when this is entered.

    Raises:
        RuntimeError: it ended, or did not answer in time; the message names its log.
    """
    start = time.perf_counter()
    with log.open("ab") as output:
        command = [sys.executable, "-m", module, *arguments, "--port", str(port)]
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | _ENVIRONMENT)
    try:
        url = f"http://127.0.0.1:{port}/retrieve"
        while not _answers(url):
            if process.poll() is not None or time.perf_counter() - start > STARTS_WITHIN_S:
                raise RuntimeError(f"{module} does not answer (exit status {process.poll()}): see {log}")
            time.sleep(0.1)
        yield Server(url, process.pid, time.perf_counter() - start)
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    body = json.dumps({"queries": ["ready"], "topk": 1, "return_scores": True}).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, body, {"Content-Type": "application/json"}), timeout=60
        ):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
