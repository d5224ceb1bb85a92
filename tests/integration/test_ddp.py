"""Two processes on a batch do what one does: the same loss, the same weights after the step."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from servers import Servers


WORKER = Path(__file__).parent / "ddp_worker.py"


LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def _run(out: Path, *launcher: str, per_device: int, accumulation: int, server: str | None = None) -> None:
    out.mkdir()
    command = [sys.executable, *launcher, str(WORKER), str(out), str(per_device), str(accumulation)]
    command += [server] if server else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    _run(tmp_path / "one", per_device=8, accumulation=1)
    _run(tmp_path / "two", *LAUNCH, per_device=4, accumulation=1)
    _assert_the_same(tmp_path)


@pytest.mark.slow
def test_two_processes_share_a_vllm_server(servers: Servers, tmp_path: Path) -> None:
    """Neither waits for the other's trajectories, and each trains on its own."""
    family = tiny.qwen25()
    _run(tmp_path / "one", per_device=8, accumulation=1, server=servers.url(family))
    _run(tmp_path / "two", *LAUNCH, per_device=4, accumulation=1, server=servers.url(family))
    logs = _assert_the_same(tmp_path)
    assert all(log["sampling/sampling_logp_difference/max"] < 1e-4 for log in logs)


def _assert_the_same(tmp_path: Path) -> list[dict[str, float]]:
    """Logs and weights of the folders `one` and `two`; the latter's logs."""
    one, two = (json.loads((tmp_path / name / "logs.json").read_text()) for name in ("one", "two"))
    assert len(one) == len(two) == 2
    for alone, shared in zip(one, two, strict=True):
        assert shared == pytest.approx(alone, rel=1e-4, abs=1e-5)
    assert abs(one[0]["grad_norm"]) > 0
    weights = [torch.load(tmp_path / name / "weights.pt") for name in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(
            weights[1][name], value, atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )
    return two
