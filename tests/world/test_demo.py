from pathlib import Path

import pytest
import yaml

from mmsearch_trl.world.demo import run_demo


pytestmark = pytest.mark.slow

WORLD_RECIPE = Path(__file__).parents[2] / "recipes" / "world" / "grpo.yaml"


def test_the_demos_run_is_a_run_like_any(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = {"extends": str(WORLD_RECIPE), "rollout": {"max_turn_tokens": 4}, "per_device_train_batch_size": 8}
    recipe = tmp_path / "quick.yaml"
    recipe.write_text(yaml.safe_dump(quick))
    out = tmp_path / "demo"
    run_demo(out, seed=0, engine="transformers", recipe=recipe, warm_start_steps=2, max_steps=1)
    run = out / "grpo"
    assert yaml.safe_load((run / "recipe.yaml").read_text())["output_dir"] == str(run)
    assert "accuracy" in (run / "README.md").read_text()
    assert (run / "environment.json").is_file() and (run / "model.safetensors").is_file()
    printed = capsys.readouterr().out
    assert f"to evaluate it: mmsearch eval --config {run}/recipe.yaml --model_name_or_path {run}\n" in printed
