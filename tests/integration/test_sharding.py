"""Weights sharded by FSDP2 over two processes are trained as those of one are, rows with pictures beside rows without.

The ranks write different numbers of turns, and one of them has no picture.
"""

import json
from pathlib import Path

import pytest
import torch
import yaml
from forks import Forks
from integration import sharding_worker
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText


SHIPPED = Path(__file__).parents[2] / "accelerate_configs" / "fsdp2.yaml"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process (this one) and two wrote: `one` and `two`."""
    home = tmp_path_factory.mktemp("runs")
    sharding_worker.main(home / "one", 8)
    settings = yaml.safe_load(SHIPPED.read_text()) | {"num_processes": 2, "mixed_precision": "no"}
    (home / "fsdp2.yaml").write_text(yaml.safe_dump(settings))
    forks.launch(
        ("--config_file", str(home / "fsdp2.yaml")), sharding_worker.__file__, str(home / "two"), "4", folder=home
    )
    return home


@pytest.mark.parametrize("kind", ["grpo", "lora", "ppo", "sft"])
def test_two_processes_with_sharded_weights_train_as_one(runs: Path, kind: str) -> None:
    assert assert_the_same(runs, kind) == "FSDP"


@pytest.mark.parametrize("way", ["one", "two"])
def test_mixed_precision_rounds_neither_log_probs_nor_values(runs: Path, way: str) -> None:
    assert json.loads((runs / way / "rounded.json").read_text()) == {"log_probs": False, "values": False}


def assert_the_same(runs: Path, kind: str) -> str:
    """Logs and weights of one process and of two; how these were distributed."""
    (_, one), (how, two) = (json.loads((runs / name / kind / "logs.json").read_text()) for name in ("one", "two"))
    assert len(one) == len(two) == 2
    for alone, shared in zip(one, two, strict=True):
        # Entropy is a mean over micro-batches, whose rows differ.
        wanted = {key: value for key, value in alone.items() if key != "entropy"}
        found = {key: value for key, value in shared.items() if key != "entropy"}
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert abs(one[0]["grad_norm"]) > 0
    weights = [_saved(runs / name / kind) for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-5, rtol=1e-5, msg=lambda text, n=name: n + text)
    return how


def _saved(folder: Path) -> dict[str, torch.Tensor]:
    adapter = folder / "adapter_model.safetensors"
    return load_file(adapter) if adapter.exists() else AutoModelForImageTextToText.from_pretrained(folder).state_dict()
