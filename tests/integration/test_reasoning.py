"""The reasoning recipes on a small model of their family and rows as Geometry3K has them, from command to log."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmsearch_trl.commands.main import main
from mmsearch_trl.traces.files import read_traces
from mmsearch_trl.world.miniature import Family, save_miniature


pytestmark = pytest.mark.slow

COIN = """
import hashlib

def coin(completions, **columns):
    said = ["".join(message["content"] for message in messages) for messages in completions]
    return [float(hashlib.sha256(text.encode()).digest()[0] % 2) for text in said]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature of Qwen3-VL, eight questions with figures, and a reward that even an untrained model earns."""
    folder = tmp_path_factory.mktemp("reasoning")
    save_miniature(Family.QWEN3_VL, folder / "model")
    pictures = io.BytesIO()
    Image.new("RGB", (60, 40), (200, 30, 90)).save(pictures, "PNG")
    rows = [
        {"images": [{"bytes": pictures.getvalue(), "path": None}], "problem": f"<image>Find x{i}.", "answer": str(i)}
        for i in range(8)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    (folder / "coin.py").write_text(COIN)
    return folder


@pytest.mark.parametrize("recipe", ["gspo", "dapo"])
def test_a_reasoning_recipe_trains(recipe: str, home: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "model_name_or_path": home / "model",
        "train_files": home / "train.parquet",
        "eval_files": "[]",
        "eval_strategy": '"no"',
        "output_dir": tmp_path / "run",
        "attn_implementation": "sdpa",
        "use_cpu": True,
        "bf16": False,
        "use_vllm": False,
        "vllm_mode": "server",
        "vllm_enable_sleep_mode": False,
        "min_pixels": 1024,
        "max_pixels": 4096,
        "num_generations": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 1,
        "max_steps": 3,
        "save_strategy": '"no"',
        "rollout.max_turn_tokens": 12,
        "reward.function": f"{home / 'coin.py'}:coin",
    }
    if recipe == "dapo":
        keys |= {"reward.overlong": "{max_tokens: 12, buffer: 6}"}
    assert (
        main(["train", "--config", f"reasoning/{recipe}", *(f"--{key}={value}" for key, value in keys.items())]) == 0
    )
    logs = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    steps = [log for log in logs if "loss" in log]
    traces = list(read_traces(tmp_path / "run"))
    assert len(steps) == 3 and len(traces) == 12 and all(log["grad_norm"] >= 0 for log in steps)
    assert all(0 <= log["rollout/truncated"] <= 1 and "search/ratio" not in log for log in steps)
    if recipe == "dapo":
        assert all(log["rewards/overlong/mean"] < 0 and "train/carried_groups" in log for log in steps)
        pairs = [traces[i : i + 2] for i in range(0, 12, 2)]
        assert all(one.id == other.id and one.reward != other.reward for one, other in pairs)
