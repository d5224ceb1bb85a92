"""A push to the Hub, against a stand-in on this machine: the scripts run in a process that knows no other Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub import FakeHub
from runs import QUICK, grpo_arguments
from safetensors.torch import load


pytestmark = pytest.mark.slow

TOKEN = "hf_stand_in"
COMMANDS = (
    "import json, sys; from mmsearch_trl.commands.main import main; sys.exit(any(map(main, json.load(sys.stdin))))"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("push")


@pytest.fixture(scope="module")
def hub(world_home: Path, home: Path) -> FakeHub:
    """The stand-in after two runs of `mmsearch train`: a whole model, `home/agent`, and an adapter, `home/lora`."""
    options = QUICK | {"push_to_hub": "true", "hub_token": TOKEN}
    lora = {"use_peft": "true", "lora_r": 2, "lora_target_modules": "[q_proj, v_proj]"}
    kinds = {"agent": options, "lora": options | lora}
    commands = [
        ["train", *grpo_arguments(world_home, home / name, hub_model_id=f"someone/{name}", **chosen)]
        for name, chosen in kinds.items()
    ]
    with FakeHub() as hub:
        own = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home / "hf"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", COMMANDS],
            input=json.dumps(commands),
            env={name: value for name, value in os.environ.items() if not name.startswith("HF_")} | own,
            cwd=home,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    return hub


def test_a_push_carries_weights_processor_and_card_and_no_data(hub: FakeHub, home: Path) -> None:
    files = hub.files["someone/agent"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "processor_config.json", "README.md"} <= set(files)
    assert (home / "agent" / "traces").is_dir()
    assert not [name for name in files if name.startswith(("traces/", "evaluation/", "checkpoint"))]
    assert files["model.safetensors"] == (home / "agent" / "model.safetensors").read_bytes()
    assert "model_name_or_path='someone/agent'" in files["README.md"].decode()


def test_a_push_is_one_commit_with_the_token_in_its_header_alone(hub: FakeHub) -> None:
    assert not [name for files in hub.files.values() for name, content in files.items() if TOKEN.encode() in content]
    assert hub.tokens - {None} == {f"Bearer {TOKEN}"}  # None: uploads to a signed address
    assert hub.messages == ["End of training"] * 2


def test_a_push_of_a_lora_run_carries_the_adapter_alone(hub: FakeHub) -> None:
    files = hub.files["someone/lora"]
    assert "model.safetensors" not in files
    assert all("lora" in name for name in load(files["adapter_model.safetensors"]))
    assert json.loads(files["adapter_config.json"])["r"] == 2
    assert b"library_name: peft" in files["README.md"]
    assert b"a LoRA adapter" in files["README.md"]
