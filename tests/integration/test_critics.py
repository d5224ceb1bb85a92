"""A critic that two processes share, copied or sharded, learns what one process alone does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from integration import critic_worker


LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]

pytestmark = pytest.mark.slow


def test_two_processes_fit_a_critic_as_one_does(tmp_path: Path) -> None:
    critic_worker.main(tmp_path, ("alone",))
    command = [sys.executable, *LAUNCH, critic_worker.__file__, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    alone, copied, sharded = (torch.load(tmp_path / f"{way}.pt") for way in ("alone", "copied", "sharded"))
    assert alone["kinds"] == copied["kinds"] == {"Tensor"} and sharded["kinds"] == {"DTensor"}
    for way in (copied, sharded):
        for one, two in zip(alone["metrics"], way["metrics"], strict=True):
            assert two == pytest.approx(one, rel=1e-4)
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(way["weights"][name], weight, atol=2e-5, rtol=1e-4, msg=name)
