"""Ranks that roll out different numbers of turns do not wait for each other, with weights sharded by FSDP2."""

import subprocess
import sys
from pathlib import Path

import pytest


WORKER = Path(__file__).with_name("sharding_worker.py")
TURNS = ("rank 0: 1 turns, difference 0.0e+00", "rank 1: 3 turns, difference 0.0e+00")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def result() -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(WORKER)]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)


def test_uneven_rollouts_end_and_leave_the_weights_sharded_as_they_were(
    result: subprocess.CompletedProcess[str],
) -> None:
    assert all(line in result.stdout for line in TURNS), result.stderr[-2000:]


def test_without_gathering_they_would_stall(result: subprocess.CompletedProcess[str]) -> None:
    """The second process has more turns, and nobody to compute its last ones with."""
    assert result.returncode != 0 and "Timed out waiting" in result.stderr
    assert result.stdout.count("rank 1: ") == 1
