"""LoRA from training to a merged model: what was sampled from, trained, saved, reloaded and merged is one policy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import get_peft_model
from runs import grpo_arguments
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, PreTrainedModel
from trl import ModelConfig

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.data.dataset import row_to_task
from mmsearch_trl.engine.weight_sync import native_adapter_obstacle
from mmsearch_trl.recipe.build import load_agent, merge_adapter
from mmsearch_trl.recipe.command_line import recipe_arguments
from mmsearch_trl.recipe.preflight import Preflight
from mmsearch_trl.recipe.recipe import load_recipe
from mmsearch_trl.recipe.start import new_adapter
from mmsearch_trl.train import train
from mmsearch_trl.trainer.demonstrations import collate
from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer


pytestmark = pytest.mark.slow

OPTIONS = {
    "use_peft": "true",
    "lora_r": 4,
    "lora_dropout": 0.0,
    "lora_target_modules": "['.*language_model.*_proj']",
    "per_device_train_batch_size": 16,
    "num_generations": 8,
    "max_steps": 3,
    "learning_rate": 1e-2,
    "temperature": 1.5,
    "eval_files": "[]",
}


@pytest.fixture(scope="module")
def trained(world_home: Path, taught: Path, tmp_path_factory: pytest.TempPathFactory) -> MMSearchGRPOTrainer:
    out = tmp_path_factory.mktemp("lora")
    recipe = load_recipe(*recipe_arguments(grpo_arguments(world_home, out, model_name_or_path=taught, **OPTIONS)))
    recipe.validate()
    return train(recipe)


@pytest.fixture(scope="module")
def trajectories(trained: MMSearchGRPOTrainer) -> list[Trajectory]:
    tasks = [row_to_task(trained.train_dataset[number]) for number in range(4)]
    return tiny.roll_out(trained, tasks, [str(number) for number in range(4)])


def log_probs(model: Any, trajectories: Sequence[Trajectory], trainer: MMSearchGRPOTrainer) -> list[torch.Tensor]:
    """Log-probs of each trajectory's sampled tokens, one sequence at a time."""
    rows = []
    for trajectory in trajectories:
        inputs = collate([trajectory], trainer.rollouter.protocol.chat, 0)
        labels = inputs.pop("labels")[0, 1:]
        with torch.no_grad():
            scores = torch.log_softmax(model.eval()(**inputs).logits[0, :-1], dim=-1)
        rows.append(scores.gather(1, labels.clamp(min=0)[:, None])[:, 0][labels >= 0])
    return rows


def same(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor], tolerance: float) -> bool:
    return all(torch.allclose(a, b, rtol=0, atol=tolerance) for a, b in zip(one, other, strict=True))


def test_training_moves_the_adapter_and_not_one_bit_of_the_base(trained: MMSearchGRPOTrainer, taught: Path) -> None:
    adapters = {name: p for name, p in trained.model.named_parameters() if "lora_" in name}
    assert {name for name, p in trained.model.named_parameters() if p.requires_grad} == set(adapters)
    assert all(p.abs().max() > 0 for name, p in adapters.items() if "lora_B" in name)
    base = trained.model.get_base_model().state_dict()
    for name, weight in AutoModelForImageTextToText.from_pretrained(taught).state_dict().items():
        owner, _, kind = name.rpartition(".")
        kept = base[name] if name in base else base[f"{owner}.base_layer.{kind}"]
        assert torch.equal(kept, weight), name


def test_the_sampler_uses_the_adapter(trained: MMSearchGRPOTrainer, trajectories: list[Trajectory]) -> None:
    sampled = [
        torch.tensor([value for value, bit in zip(t.logprobs, t.loss_mask, strict=True) if bit]) for t in trajectories
    ]
    assert same(sampled, log_probs(trained.model, trajectories, trained), 1e-5)
    with trained.model.disable_adapter():
        assert not same(sampled, log_probs(trained.model, trajectories, trained), 1e-2)


def test_a_reloaded_adapter_is_the_trained_model(trained: MMSearchGRPOTrainer, trajectories: list[Trajectory]) -> None:
    saved = Path(str(trained.args.output_dir))
    assert (saved / "adapter_config.json").exists() and not (saved / "model.safetensors").exists()
    agent = load_agent(ModelConfig(model_name_or_path=str(saved), dtype="float32"))
    expected = log_probs(trained.model, trajectories, trained)
    assert same(expected, log_probs(agent, trajectories, trained), 1e-6)


def test_a_merged_model_is_the_adapter_on_its_base(
    trained: MMSearchGRPOTrainer, trajectories: list[Trajectory], tmp_path: Path
) -> None:
    merge_adapter(str(trained.args.output_dir), tmp_path / "merged")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    expected = log_probs(trained.model, trajectories, trained)
    assert same(expected, log_probs(merged, trajectories, trained), 1e-5)


def begin(home: Path, model: Path, out: Path, **keys: Any) -> MMSearchGRPOTrainer:
    options = OPTIONS | {"model_name_or_path": model, "max_steps": 1, "save_strategy": "steps", "save_steps": 1} | keys
    if options["use_peft"] == "false":
        options = {key: value for key, value in options.items() if not key.startswith("lora_")}
    recipe = load_recipe(*recipe_arguments(grpo_arguments(home, out, **options)))
    recipe.validate()
    Preflight(recipe).require()
    return train(recipe)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    [file] = folder.glob("*.safetensors")
    return load_file(file)


def test_an_adapter_is_trained_on_against_itself_and_saved_alone(
    trained: MMSearchGRPOTrainer, world_home: Path, tmp_path: Path
) -> None:
    first = Path(str(trained.args.output_dir))
    keys = {"from_adapter": "continue", "beta": 0.5}
    moved = begin(world_home, first, tmp_path / "run", **keys)
    kl = [log["kl"] for log in moved.state.log_history if "kl" in log]
    assert kl and abs(kl[0]) < 1e-5, "at its first step the policy is the reference"
    before, after = weights_of(first), weights_of(tmp_path / "run")
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-1"):
        assert [path.parent.name for path in folder.glob("*/adapter_*")] in ([], ["checkpoint-1"] * 2)
    reference = {name.replace(".ref.", "."): p for name, p in moved.model.named_parameters() if ".ref." in name}
    assert all(torch.equal(p, before[name]) for name, p in reference.items()) and len(reference) == len(before)
    assert not any(p.requires_grad for name, p in moved.model.named_parameters() if ".default." not in name)
    assert native_adapter_obstacle(moved.model) is None, "vLLM is sent the adapter that is trained"
    resumed = begin(world_home, first, tmp_path / "run", **keys, max_steps=2, resume_from_checkpoint="auto")
    assert resumed.state.global_step == 2
    now = {name: p for name, p in resumed.model.named_parameters() if ".ref." in name}
    assert all(torch.equal(p, before[name.replace(".ref.", ".")]) for name, p in now.items())


@pytest.mark.parametrize("adapted", [False, True])
def test_an_adapter_is_merged_and_trained_whole_or_under_a_new_one(
    adapted: bool, trained: MMSearchGRPOTrainer, trajectories: list[Trajectory], world_home: Path, tmp_path: Path
) -> None:
    first, run = Path(str(trained.args.output_dir)), tmp_path / "run"
    keys: dict[str, Any] = {"from_adapter": "merge", "beta": 0.5, "learning_rate": 1e-4}
    keys |= {"use_peft": str(adapted).lower()}
    moved = begin(world_home, first, run, **keys)
    kl = [log["kl"] for log in moved.state.log_history if "kl" in log]
    assert kl and abs(kl[0]) < 1e-5, "at its first step the policy is the reference"
    merged = AutoModelForImageTextToText.from_pretrained(run / "merged_start")
    expected = log_probs(trained.model, trajectories, trained)
    assert same(expected, log_probs(merged, trajectories, trained), 1e-5)
    if adapted:
        agent = load_agent(ModelConfig(model_name_or_path=str(run), dtype="float32"))
        assert same(log_probs(moved.model, trajectories, trained), log_probs(agent, trajectories, trained), 1e-6)
    else:
        reference: Any = moved.ref_model
        assert (run / "model.safetensors").is_file()
        assert reference.config._name_or_path == str(run / "merged_start")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "training starts from a whole model: set from_adapter to merge"),
        (
            {"from_adapter": "continue", "use_peft": "false"},
            "use_peft",
        ),
        ({"from_adapter": "continue", "lora_r": 8}, "lora_r: the adapter .* has 4, not 8"),
        (
            {"from_adapter": "continue", "lora_target_modules": "[q_proj, v_proj]"},
            "lora_target_modules: .* other modules",
        ),
        (
            {"from_adapter": "continue", "lora_exclude_modules": "[q_proj]"},
            "lora_exclude_modules: .* is on other modules",
        ),
        (
            {"from_adapter": "merge", "lora_exclude_modules": "[kproj]"},
            "no module of the model is, or matches, 'kproj'",
        ),
    ],
)
def test_what_an_adapter_cannot_be_begun_with_is_refused(
    keys: dict[str, Any], message: str, trained: MMSearchGRPOTrainer, world_home: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        begin(world_home, Path(str(trained.args.output_dir)), tmp_path / "run", **keys)
    assert not (tmp_path / "run").exists()


def test_excluded_modules_have_no_adapter(world_home: Path, taught: Path) -> None:
    values = {
        "use_peft": "true",
        "lora_target_modules": "[q_proj, down_proj]",
        "lora_exclude_modules": "[down_proj, visual]",
    }
    recipe = load_recipe(
        *recipe_arguments(grpo_arguments(world_home, Path("gone"), model_name_or_path=taught, **values))
    )
    base, adapter = load_agent(recipe.model), new_adapter(recipe.model)
    assert isinstance(base, PreTrainedModel) and adapter is not None
    adapted = get_peft_model(base, adapter)
    names = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert names == {"q_proj"} and not [
        name for name, _ in adapted.named_parameters() if "visual" in name and "lora" in name
    ]
