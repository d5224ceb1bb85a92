"""LoRA from training to a merged model: what was sampled from, trained, saved, reloaded and merged is one policy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from runs import grpo_arguments
from transformers import AutoModelForImageTextToText
from trl import ModelConfig

from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.data.dataset import row_to_task
from mmsearch_trl.recipe.build import load_agent, merge_adapter
from mmsearch_trl.recipe.command_line import recipe_arguments
from mmsearch_trl.recipe.recipe import load_recipe
from mmsearch_trl.train import train
from mmsearch_trl.trainer.demonstrations import collate
from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer


pytestmark = pytest.mark.slow

OPTIONS = {
    "use_peft": "true",
    "lora_r": 4,
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
