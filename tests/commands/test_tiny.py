"""`mmsearch tiny`: recipes tried on a CPU, as a user types it."""

import json
import shutil
from pathlib import Path

import pytest

from mmsearch_trl.commands.main import main
from mmsearch_trl.recipe.shipped import shipped_recipes
from mmsearch_trl.world import tiny_recipe
from mmsearch_trl.world.files import write_world
from mmsearch_trl.world.miniature import Family
from mmsearch_trl.world.world import World


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "family", "adapter"),
    [
        ("mmsearch_r1/qwen2.5-vl-7b-paper-lora", "qwen2_5_vl", True),
        ("mmsearch_r1/qwen3-vl-8b", "qwen3_vl", False),
        ("search_r1/qwen2.5-3b-structure", "qwen2", False),
        ("search_r1/qwen2.5-7b-lora", "qwen2", True),
        ("search_r1/qwen2.5-3b-ppo", "qwen2", False),
        ("lmm_r1/mgt-geo-script", "qwen2_5_vl", False),
        ("lmm_r1/mgt-sokoban-paper", "qwen2_5_vl", False),
        ("reasoning/dapo", "qwen3_vl", False),
        ("world/sft", "qwen2_5_vl", False),
    ],
)
def test_a_recipe_runs_in_miniature(
    recipe: str, family: str, adapter: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tiny", recipe, "--out", str(tmp_path / "tiny")]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    words = said.removeprefix("to run it: mmsearch ").split()
    assert words == ["sft" if recipe == "world/sft" else "train", "--config", str(tmp_path / "tiny" / "recipe.yaml")]
    assert json.loads((tmp_path / "tiny" / "model" / "config.json").read_text())["model_type"] == family
    assert main(words) == 0
    run = tmp_path / "tiny" / "run"
    assert (run / ("adapter_model.safetensors" if adapter else "model.safetensors")).is_file()
    assert json.loads((run / "trainer_state.json").read_text())["global_step"] == 2


@pytest.mark.slow
def test_a_recipe_of_one_s_own_runs_with_a_model_of_another_family(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: mmsearch_r1/qwen2.5-vl-7b-lora\nmodel_name_or_path: Qwen/Qwen3.5-4B\n")
    assert main(["tiny", str(recipe), "--out", str(tmp_path / "tiny")]) == 0
    assert json.loads((tmp_path / "tiny" / "model" / "config.json").read_text())["model_type"] == "qwen3_5"
    assert main(["train", "--config", str(tmp_path / "tiny" / "recipe.yaml")]) == 0
    assert (tmp_path / "tiny" / "run" / "adapter_model.safetensors").is_file()


@pytest.fixture(scope="module")
def written_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "world"
    write_world(World(0), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("recipe", shipped_recipes())
def test_the_miniature_of_every_recipe_has_rows_that_its_reward_reads(
    recipe: str,
    written_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The world is the same for all of them, so that it is written once."""
    monkeypatch.setattr(tiny_recipe, "write_world", lambda world, out: shutil.copytree(written_world, out))
    assert main(["tiny", recipe, "--out", str(tmp_path / "tiny")]) == 0
    checked = main(["check", str(tmp_path / "tiny" / "recipe.yaml")])
    said = capsys.readouterr().out
    assert checked == 0, said
    assert [line for line in said.splitlines() if line.startswith(("warning", "problem"))] == []
    assert "the first " in said  # prompt or conversation, which is of a row


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").touch()
    assert main(["tiny", "world/grpo", "--out", str(tmp_path)]) == 1
    assert f"{tmp_path} is not empty: name a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "vision", "family"),
    [
        ("Qwen/Qwen3-VL-8B-Instruct", True, Family.QWEN3_VL),
        ("Qwen/Qwen2-VL-2B-Instruct", True, Family.QWEN2_VL),
        ("Qwen/Qwen3.5-4B", True, Family.QWEN35),
        ("Qwen/Qwen2.5-VL-3B-Instruct", True, Family.QWEN25_VL),
        ("somebody/else-vl", True, Family.QWEN25_VL),
        ("Qwen/Qwen2.5-7B", False, Family.QWEN2),
    ],
)
def test_a_miniature_is_of_the_recipes_family(name: str, vision: bool, family: Family) -> None:
    assert Family.of(name, vision=vision) is family
