"""A mistake in a recipe is told before PyTorch, transformers and TRL are imported."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.recipe.declared import declared_fields
from mmsearch_trl.recipe.written import MODEL_KEYS, TRAINER_KEYS, Kind, read_written


HEAVY = ("torch", "transformers", "trl", "vllm", "datasets", "accelerate")
BASE = "model_name_or_path: some/model\ntrain_files: [a.jsonl]\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE)
    return path


def test_fields_read_from_sources_are_those_of_the_classes() -> None:
    from mmsearch_trl.recipe.model_config import RecipeModelConfig
    from mmsearch_trl.trainer.config import MMSearchGRPOConfig
    from mmsearch_trl.trainer.sft import MMSearchSFTConfig

    of_classes: list[tuple[Sequence[str], Any]] = [
        (MODEL_KEYS, RecipeModelConfig),
        (TRAINER_KEYS["grpo"], MMSearchGRPOConfig),
        (TRAINER_KEYS["sft"], MMSearchSFTConfig),
    ]
    for sources, cls in of_classes:
        assert set(declared_fields(*sources)) == {each.name for each in fields(cls) if each.init}
    hints = declared_fields(*TRAINER_KEYS["grpo"])
    assert (hints["learning_rate"], hints["save_traces"]) == (float, bool)
    assert hints["vllm_server_urls"] == list[str] | None


MISTAKES = [
    ("train", "learning_rat: 1e-5", "unknown key `learning_rat`; did you mean `learning_rate`?"),
    ("train", "learning_rate: fast", "`learning_rate` must be a number, got 'fast'"),
    ("eval", "max_steps: 1.5", "`max_steps` must be a whole number, got 1.5"),
    ("train", "bf16: 'no'", "`bf16` must be true or false or null, got 'no'"),
    ("train", "lora_r: many", "`lora_r` must be a whole number, got 'many'"),
    ("train", "rollout: {max_turns: 0}", "rollout.max_turns must be at least 1, got 0"),
    ("train", "search: {text: {backend: bm52, path: x}}", "did you mean `bm25`?"),
    ("train", "reward: {search_penality: 1}", "did you mean `reward.search_penalty`?"),
    ("train", "protocol: search_r2", "`protocol` must be"),
    ("train", "loss_type: bnop", "recipe.yaml: loss_type must be one of grpo, dr_grpo,"),
    ("eval", "vllm_mode: sever", "got 'sever'; did you mean `server`?"),
    ("train", "estimator: {nam: rloo}", "unknown key `estimator.nam`; did you mean `estimator.name`?"),
    ("train", "estimator: {name: gap}", "`estimator.name` must be"),
    ("sft", "estimator: {name: rloo}", "unknown key `estimator`"),
    ("sft", "num_generations: 8", "unknown key `num_generations`"),
    ("sft", "search: {}", "unknown key `search`"),
    ("stages", "learning_rat: 2e-5", "unknown key `learning_rat`; did you mean `learning_rate`?"),
    ("train", "seed: 1", "recipe.yaml: train_files: data file not found: a.jsonl"),
    ("sft", "seed: 2", "recipe.yaml: train_files: data file not found: a.jsonl"),
    ("eval", "eval_files: [b.jsonl]", "recipe.yaml: eval_files: data file not found: b.jsonl"),
    ("train", "extends: gone.yaml", "extends: recipe not found"),
]
EACH = f"""
import contextlib, io, json, sys
from mmsearch_trl.commands.main import main
for words in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = main(words)
    print(json.dumps([status, out.getvalue(), err.getvalue(), sorted(set(sys.modules) & set({HEAVY}))]))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command says to each mistake, one after the other in a process that has imported nothing."""
    home, asked = tmp_path_factory.mktemp("mistakes"), []
    for number, (command, mistake, _) in enumerate(MISTAKES):
        (home / str(number)).mkdir()
        (home / str(number) / "recipe.yaml").write_text(BASE + mistake)
        named = [] if command == "stages" else ["--config"]
        asked.append([command, *named, str(home / str(number) / "recipe.yaml")])
    words = [sys.executable, "-c", EACH]
    done = subprocess.run(words, input=json.dumps(asked), capture_output=True, text=True, check=True)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    return {mistake: answer for (_, mistake, _), answer in zip(MISTAKES, said, strict=True)}


@pytest.mark.parametrize(("mistake", "message"), [each[1:] for each in MISTAKES])
def test_a_mistake_is_told_before_anything_heavy_is_imported(mistake: str, message: str, told: dict[str, Any]) -> None:
    status, out, err, heavy = told[mistake]
    assert (status, out, heavy) == (1, "", [])
    [line] = err.splitlines()
    assert line.startswith("mmsearch: error: ") and message in line


@pytest.mark.parametrize(("text", "value"), [("true", True), ("auto", "auto"), ("runs/mine", "runs/mine")])
def test_what_resuming_takes_is_taken(recipe: Path, text: str, value: Any) -> None:
    recipe.write_text(f"{BASE}resume_from_checkpoint: {text}")
    assert read_written(recipe).trainer["resume_from_checkpoint"] == value


@pytest.mark.parametrize("kind", ["grpo", "sft"])
def test_the_keys_of_each_section_are_told_apart(recipe: Path, kind: Kind) -> None:
    recipe.write_text(f"{BASE}learning_rate: 1e-6\nuse_peft: true")
    written = read_written(recipe, {"seed": 3}, kind=kind)
    assert written.model == {"model_name_or_path": "some/model", "use_peft": True}
    assert written.trainer == {"learning_rate": "1e-6", "seed": 3}
    assert written.data.train_files == ["a.jsonl"]
    assert written.where("seed") == "command line (--seed)" and written.where("use_peft") == str(recipe)


def test_a_mistake_on_the_command_line_is_said_to_be_there(recipe: Path) -> None:
    with pytest.raises(UserError, match=r"command line \(--search\.text\.top_k\).*top_k"):
        read_written(recipe, {"search.text.backend": "ddgs", "search.text.top_k": "three"})
