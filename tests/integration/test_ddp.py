"""Two processes on a batch do what one does: the same loss, the same weights after the step."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from forks import TWO, Forks
from integration import ddp_worker
from integration.test_sharding import assert_the_same
from servers import Servers


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(servers: Servers, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process (this one) and two wrote: `one` and `two`."""
    home = tmp_path_factory.mktemp("runs")
    ddp_worker.main(home / "one", 8, servers.url(tiny.qwen25()))
    forks.launch(TWO, ddp_worker.__file__, str(home / "two"), "4", servers.url(tiny.qwen25()), folder=home)
    return home


def test_two_processes_train_as_one(runs: Path) -> None:
    _assert_the_same(runs, "transformers")


def test_two_processes_share_a_vllm_server(runs: Path) -> None:
    """Neither waits for the other's trajectories, and each trains on its own."""
    logs = _assert_the_same(runs, "server")
    assert all(log["sampling/sampling_logp_difference/max"] < 1e-4 for log in logs)


def test_two_processes_learn_demonstrations_as_one(runs: Path) -> None:
    """One of them has no picture."""
    assert assert_the_same(runs, "sft") == "MULTI_CPU"


def test_two_processes_make_advantages_of_tokens_as_one(runs: Path) -> None:
    logs = _assert_the_same(runs, "estimator")
    assert logs[1]["kl"] > 0 and logs[1]["train/kl_coef"] != logs[0]["train/kl_coef"]


def test_two_processes_train_on_message_rows_with_and_without_pictures_as_one(runs: Path) -> None:
    logs = _assert_the_same(runs, "messages")
    assert all(log["rollout/turns"] == 1.0 and log["grad_norm"] > 0 for log in logs)


def _assert_the_same(runs: Path, engine: str) -> list[dict[str, float]]:
    """Logs and weights of one process and of two; the latter's logs."""
    folders = [runs / number / engine for number in ("one", "two")]
    one, two = (json.loads((folder / "logs.json").read_text()) for folder in folders)
    assert len(one) == len(two) == 2
    for alone, shared in zip(one, two, strict=True):
        assert shared == pytest.approx(alone, rel=1e-4, abs=1e-5)
    assert abs(one[0]["grad_norm"]) > 0
    weights = [torch.load(folder / "weights.pt") for folder in folders]
    for name, value in weights[0].items():
        torch.testing.assert_close(
            weights[1][name], value, atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )
    return two
