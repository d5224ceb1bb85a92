"""Recipes and accelerate configurations by name."""

from pathlib import Path

import pytest
import yaml

from mmsearch_trl.commands.main import main
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.recipe.layers import Layers
from mmsearch_trl.recipe.shipped import find_accelerate_config, find_recipe, recipe_summary, shipped_recipes


@pytest.mark.parametrize("given", ["world/grpo", "world/grpo.yaml", "recipes/world/grpo.yaml", Path("world/grpo")])
def test_a_shipped_recipe_is_found_by_its_name_in_any_folder(
    given: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe(given) == shipped_recipes()["world/grpo"]


def test_a_file_of_ones_own_comes_before_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "grpo").write_text("seed: 7\n")
    assert find_recipe("world/grpo") == Path("world/grpo")


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("world/grop", "did you mean world/grpo?"),
        ("mmsearch_r1/qwen2.5-vl-7b-papre", "did you mean mmsearch_r1/qwen2.5-vl-7b-paper?"),
        ("zzz", "`mmsearch recipes` lists those that are shipped"),
    ],
)
def test_a_name_that_is_none_is_refused_with_the_nearest(given: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"^recipe not found: {given}: ") as refusal:
        find_recipe(given)
    assert str(refusal.value).endswith(hint)


def test_a_recipe_of_ones_own_extends_a_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: mmsearch_r1/qwen2.5-vl-3b-lora\nseed: 7\n")
    layers = Layers()
    layers.add_file(tmp_path / "mine.yaml")
    assert (layers.values["seed"], layers.values["lora_r"]) == (7, 64)
    assert layers.values["model_name_or_path"] == "Qwen/Qwen2.5-VL-3B-Instruct"


def test_recipes_are_listed_with_what_they_are_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_recipes())
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)
    assert recipe_summary(shipped_recipes()["world/sft"]).endswith("with searching a coin flip")


def test_a_copy_works_where_it_lies_and_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, folder = "mmsearch_r1/qwen2.5-vl-7b-paper-lora", tmp_path / "mine"
    assert main(["recipes", "copy", name, str(folder)]) == 0
    copied, shipped = Layers(), Layers()
    copied.add_file(folder / "qwen2.5-vl-7b-paper-lora.yaml")
    shipped.add_file(Path(name))
    assert copied.values == shipped.values
    assert {str(folder) in str(copied.place(key)) for key in copied.values} == {True}
    assert main(["recipes", "copy", name, str(folder)]) == 1
    assert "exists: choose another folder" in capsys.readouterr().err


def test_a_recipe_is_shown_with_those_that_it_extends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", "search_r1/qwen2.5-3b-lora"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("lora_r") > shown.index("# --- qwen2.5-7b.yaml")
    assert all(isinstance(part, dict) for part in yaml.safe_load_all(shown.replace("# ---", "---\n#")) if part)


def test_accelerate_configurations_have_names_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_accelerate_config("zero3") == find_accelerate_config("accelerate_configs/zero3.yaml")
    own = tmp_path / "zero3"
    own.touch()
    assert find_accelerate_config(str(own)) == own
    with pytest.raises(UserError, match="not found: zero4; shipped are ddp, fsdp2, multi_node, single, zero2, zero3"):
        find_accelerate_config("zero4")
