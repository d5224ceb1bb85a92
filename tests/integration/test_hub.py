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


TOKEN = "hf_stand_in"


def pushed(arguments: list[str], tmp_path: Path) -> tuple[FakeHub, dict[str, bytes]]:
    """Run `mmsearch train` with the stand-in as its Hub; the files of the repository that it made."""
    with FakeHub() as hub:
        own = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | own
        command = [sys.executable, "-m", "mmsearch_trl.commands.main", "train", *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return hub, hub.files["someone/agent"]


def test_a_push_carries_weights_processor_and_card_and_no_data(world_home: Path, tmp_path: Path) -> None:
    options = QUICK | {"push_to_hub": "true", "hub_model_id": "someone/agent", "hub_token": TOKEN}
    hub, files = pushed(grpo_arguments(world_home, tmp_path / "run", **options), tmp_path)
    assert {"model.safetensors", "config.json", "tokenizer.json", "processor_config.json", "README.md"} <= set(files)
    assert (tmp_path / "run" / "traces").is_dir()
    assert not [name for name in files if name.startswith(("traces/", "evaluation/", "checkpoint"))]
    assert files["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert "model_name_or_path='someone/agent'" in files["README.md"].decode()
    assert not [name for name, content in files.items() if TOKEN.encode() in content]
    assert hub.tokens - {None} == {f"Bearer {TOKEN}"}  # None: uploads to a signed address
    assert hub.messages == ["End of training"]


def test_a_push_of_a_lora_run_carries_the_adapter_alone(world_home: Path, tmp_path: Path) -> None:
    options = QUICK | {"push_to_hub": "true", "hub_model_id": "someone/agent", "hub_token": TOKEN}
    options |= {"use_peft": "true", "lora_r": 2, "lora_target_modules": "[q_proj, v_proj]"}
    _, files = pushed(grpo_arguments(world_home, tmp_path / "run", **options), tmp_path)
    assert "model.safetensors" not in files
    assert all("lora" in name for name in load(files["adapter_model.safetensors"]))
    assert json.loads(files["adapter_config.json"])["r"] == 2
    assert b"library_name: peft" in files["README.md"]
    assert b"a LoRA adapter" in files["README.md"]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
