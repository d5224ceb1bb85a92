"""Ranks that roll out different numbers of turns do not wait for each other, with weights sharded by FSDP2."""

import subprocess
import sys
from pathlib import Path

import pytest


WORKER = Path(__file__).with_name("sharding_worker.py")


def _run(mode: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(WORKER),
        mode,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)


@pytest.mark.slow
def test_uneven_rollouts_end_and_leave_the_weights_sharded_as_they_were() -> None:
    result = _run("gathered")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "rank 0: 1 turns, difference 0.0e+00" in result.stdout
    assert "rank 1: 3 turns, difference 0.0e+00" in result.stdout


@pytest.mark.slow
def test_without_gathering_they_would_stall() -> None:
    assert _run("layer by layer").returncode != 0
