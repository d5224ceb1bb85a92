"""The vLLM server that all schedulers share: one process, started and stopped here."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from benchmarks.rollout.model import WINDOW

from mmsearch_trl.engine.vllm_client import VLLMClient, wait_until_healthy


_START_SECONDS = 300.0
_STOP_SECONDS = 30.0
MAX_SEQUENCES = 128
BLOCK = 32
"""Tokens per block of the prefix cache."""

_ARGUMENTS = (
    *("--host", "127.0.0.1", "--enforce-eager", "--dtype", "float32", "--max-model-len", str(WINDOW)),
    *("--max-num-seqs", str(MAX_SEQUENCES), "--max-num-batched-tokens", "8192", "--no-enable-chunked-prefill"),
    *("--block-size", str(BLOCK), "--limit-mm-per-prompt", '{"image":8,"video":0}', "--enable-scale-out"),
    *("--logprobs-mode", "raw_logprobs", "--enable-prompt-tokens-details"),
    *("--logits-processors", "benchmarks.rollout.forced_tokens:ForcedTokens"),
)
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TORCHDYNAMO_DISABLE": "1",
}


@dataclass(frozen=True, slots=True)
class Server:
    url: str
    pid: int

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time so far of the server's processes: HTTP front end, scheduler, model."""
        front = psutil.Process(self.pid)
        return {"front": _cpu(front)} | {
            child.name().removeprefix("VLLM::").lower(): _cpu(child) for child in front.children(recursive=True)
        }


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


@contextmanager
def served(checkpoint: Path, plan: Path, port: int, log: Path) -> Iterator["Server"]:
    """A server that decodes the planned tokens; it is stopped at the end.

    Raises:
        ServerUnavailable: it did not come up; the log says why.
    """
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
    command += ["--port", str(port), *_ARGUMENTS]
    here = str(Path(__file__).parents[2])
    environment = os.environ | _ENVIRONMENT | {"ROLLOUT_BENCHMARK_PLAN": str(plan), "PYTHONPATH": here}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    server = Server(f"http://127.0.0.1:{port}", process.pid)
    try:
        asyncio.run(_wait(server.url))
        yield server
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


async def _wait(url: str) -> None:
    client = VLLMClient(url, request_seconds=_START_SECONDS)
    try:
        await wait_until_healthy(client, _START_SECONDS)
    finally:
        await client.close()
