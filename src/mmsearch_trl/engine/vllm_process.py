"""Starts a vLLM server that rollouts can use: plain vLLM with the flags that they need, on a GPU or a CPU.

mmsearch vllm MODEL [--port 8000] [--max_lora_rank 64] [any flag of `vllm serve`]
"""

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import yaml

from mmsearch_trl.core.boundaries import missing, reading, writing
from mmsearch_trl.core.children import ending_with_us
from mmsearch_trl.core.errors import EngineError, UserError
from mmsearch_trl.core.ports import listening_at
from mmsearch_trl.engine.vllm_arguments import VLLM_EXTRAS
from mmsearch_trl.engine.vllm_key import KEY_VARIABLE, RequireKey
from mmsearch_trl.engine.vllm_worker import EXTENSION
from mmsearch_trl.models.family import check_vllm_on_cpu


_LOOPBACK = "127.0.0.1"
_STOP_SECONDS = 20.0
_POLL_SECONDS = 0.5
_LOG_LINES = 15

_MODULE = "vllm.entrypoints.openai.api_server"
"""What `vllm serve` runs; the `vllm` command itself does not start from the CPU distribution."""

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Past a proxy that the environment names: it knows nothing of this machine's own addresses."""

_ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # endpoints for weights, caches and configuration
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
_CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; by default vLLM takes most of the machine's memory
    "TORCHDYNAMO_DISABLE": "1",  # compiling takes longer than a small model's rollouts
}


def default_flags(*, cpu: bool, max_lora_rank: int | None = None) -> dict[str, Any]:
    """Flags of `vllm serve`, by name with underscores, that rollouts and weight sync rest on."""
    flags: dict[str, Any] = {
        "host": _LOOPBACK,
        "middleware": f"{RequireKey.__module__}.{RequireKey.__name__}",
        "enable_scale_out": True,  # token ids and raw images in, token ids out
        "logprobs_mode": "raw_logprobs",  # those of the full softmax, as the trainer computes them at temperature 1
        "limit_mm_per_prompt": {"image": 16, "video": 0},
        "disable_uvicorn_access_log": True,
    }
    if max_lora_rank is not None:
        flags |= {"enable_lora": True, "max_lora_rank": max_lora_rank}
    if cpu:
        # vLLM's CPU build ends when a seeded request is prefilled in pieces: no pieces, and room for whole prompts.
        flags |= {"enable_chunked_prefill": False, "max_num_batched_tokens": 8192, "block_size": 32}
        flags |= {"enforce_eager": True, "dtype": "float32", "worker_extension_cls": EXTENSION}
    else:
        flags |= {"weight_transfer_config": {"backend": "nccl"}}
    return flags


def as_arguments(flags: Mapping[str, Any]) -> list[str]:
    """`{"max_model_len": 8, "enforce_eager": True, "enable_x": False}` as `--max-model-len 8 --enforce-eager
    --no-enable-x`; mappings become JSON."""
    arguments: list[str] = []
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", json.dumps(value) if isinstance(value, Mapping) else str(value)]
    return arguments


def serve_command(
    model: str, flags: Mapping[str, Any] | None = None, *, max_lora_rank: int | None = None
) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of a server; `flags` come after the defaults and replace them.

    Its key, from `flags` (`api_key`) or from `VLLM_API_KEY`, is in the environment alone: everybody on a machine can
    read a command line.

    Raises:
        UserError: vLLM is not installed, or the server would be open to other machines and has no key.
    """
    if importlib.util.find_spec("vllm") is None:
        raise missing("a vLLM server", *VLLM_EXTRAS, why="No module named 'vllm'")
    cpu = not torch.cuda.is_available()
    merged = default_flags(cpu=cpu, max_lora_rank=max_lora_rank) | dict(flags or {})
    environment = _ENVIRONMENT | (_CPU_ENVIRONMENT if cpu else {}) | os.environ
    if key := merged.pop("api_key", None):
        environment[KEY_VARIABLE] = str(key)
    if not environment.get(KEY_VARIABLE) and not _of_this_machine(str(merged["host"])):
        raise UserError(
            f"--host {merged['host']} opens the server to other machines, and without a key whoever reaches it can "
            f"replace the weights: set {KEY_VARIABLE} here and where the training runs, or leave --host out"
        )
    return [sys.executable, "-m", _MODULE, "--model", model, *as_arguments(merged)], environment


def _of_this_machine(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class VLLMProcess:
    """A server as a child process, with everything that it starts; leaving the context ends all of it.

    Args:
        model: Name or folder.
        log: File of its output.
        flags: More flags of `vllm serve`, by name with underscores.
        port: On the loopback interface; None takes a free one.

    Raises:
        EngineError: on entering, when the server ends or is not healthy within `start_seconds`.
    """

    def __init__(
        self,
        model: str,
        log: Path,
        flags: Mapping[str, Any] | None = None,
        *,
        port: int | None = None,
        max_lora_rank: int | None = None,
        start_seconds: float = 600.0,
    ) -> None:
        port = port or _free_port()
        self.url = f"http://{_LOOPBACK}:{port}"
        self.log = log
        self._command, self._environment = serve_command(
            model, dict(flags or {}) | {"port": port}, max_lora_rank=max_lora_rank
        )
        self._start_seconds = start_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "VLLMProcess":
        self.start()
        try:
            self.wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        with writing(self.log):
            self.log.parent.mkdir(parents=True, exist_ok=True)
            log = self.log.open("ab")
        with log:
            # A session of its own: the server's workers end with it, and an interrupt of ours does not reach it first.
            self._process = subprocess.Popen(
                ending_with_us(self._command),
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Return once the server is healthy."""
        deadline = time.monotonic() + self._start_seconds
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise EngineError(f"the vLLM server ended while it started; the end of {self.log}:\n{self._tail()}")
            if self.healthy():
                return
            time.sleep(_POLL_SECONDS)
        raise EngineError(f"the vLLM server was not healthy within {self._start_seconds:.0f} s; see {self.log}")

    def healthy(self) -> bool:
        try:
            with _DIRECT.open(f"{self.url}/health", timeout=5.0) as answer:
                return answer.status == 200
        except OSError:
            return False

    def stop(self) -> None:
        """End the server and everything that it started."""
        if self._process is None:
            return
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_LOG_LINES:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def become_server(model: str, flags: Sequence[str], *, port: int, max_lora_rank: int | None) -> None:
    """Replace this process by a server; `flags` are vLLM's own, and come after the defaults that they may replace.

    Raises:
        UserError: see `serve_command`; the port is taken, there are several keys, a file of flags cannot be read, or
            vLLM does not compute the model here.
    """
    ours, rest = _ours_among(flags)
    if not torch.cuda.is_available():
        check_vllm_on_cpu("MODEL", model)
    command, environment = serve_command(model, ours | {"port": port}, max_lora_rank=max_lora_rank)
    listening_at(str(ours.get("host", _LOOPBACK)), port).close()  # or vLLM would say it after half a minute
    os.execvpe(command[0], [*command, *rest], environment)


def _ours_among(flags: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Host and key, wherever vLLM would take them from, and the flags that are left."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--host")
    parser.add_argument("--api-key", nargs="+", default=[])
    parser.add_argument("--config")
    try:
        found, rest = parser.parse_known_args([_with_hyphens(flag) for flag in flags])
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from error
    host, keys = found.host, found.api_key
    if found.config is not None:
        written = _mapping_in(Path(found.config))
        host = written.get("host") if host is None else host
        keys = keys or [written[name] for name in ("api-key", "api_key") if name in written]
        # Behind the file, which vLLM puts in the place of this flag.
        rest += ["--config", found.config, "--host", _LOOPBACK if host is None else str(host)]
    if len(keys) > 1 or any(not isinstance(key, str) for key in keys):
        raise UserError(f"--api-key takes one key here: better, set {KEY_VARIABLE} on both sides")
    return ({} if host is None else {"host": host}) | ({"api_key": keys[0]} if keys else {}), rest


def _with_hyphens(flag: str) -> str:
    """`--api_key` as `--api-key`, which vLLM takes for the same; other flags as they are."""
    name, equals, value = flag.partition("=")
    hyphens = name.replace("_", "-")
    ours = len(hyphens) > 2 and any(option.startswith(hyphens) for option in ("--host", "--api-key", "--config"))
    return hyphens + equals + value if ours else flag


def _mapping_in(file: Path) -> Mapping[str, Any]:
    with reading(file):
        text = file.read_bytes()
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {file}: not YAML") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {file}: vLLM wants a mapping of flags")
    return values
