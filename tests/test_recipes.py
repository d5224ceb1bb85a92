from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from trl import SFTConfig

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.recipe.recipe import Recipe, load_recipe
from mmsearch_trl.rewards.mmsearch import RewardConfig
from mmsearch_trl.rewards.overlong import OverlongConfig
from mmsearch_trl.rewards.search_r1 import SearchR1RewardConfig
from mmsearch_trl.search.text.retriever import RetrieverConfig
from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.trainer.critic_config import CriticConfig
from mmsearch_trl.trainer.estimator_config import EstimatorConfig, KLConfig


ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
MMSEARCH_R1 = ROOT / "recipes" / "mmsearch_r1"
SEARCH_R1 = ROOT / "recipes" / "search_r1"
ADAPTED = sorted([*MMSEARCH_R1.glob("*-lora.yaml"), *SEARCH_R1.glob("*-lora.yaml")])
# Training arguments refuse bfloat16 on a machine without a GPU.
ON_CPU = {"use_cpu": True, "bf16": False}


def load(path: Path) -> Recipe:
    return load_recipe(path, ON_CPU, kind="sft" if path.stem.startswith("sft") else "grpo")


def test_every_promised_recipe_is_there() -> None:
    names = {str(path.relative_to(ROOT / "recipes")) for path in RECIPES}
    models = ("qwen2.5-vl-7b", "qwen2.5-vl-7b-paper", "qwen2.5-vl-3b", "qwen3-vl-8b")
    wanted = {f"mmsearch_r1/{model}{variant}.yaml" for model in models for variant in ("", "-lora")}
    kinds = ("", "-lora", "-structure", "-ppo")
    wanted |= {f"search_r1/qwen2.5-{size}{kind}.yaml" for size in ("3b", "7b") for kind in kinds}
    stages = ("fre-text", "fre-multi", "mgt-geo", "mgt-percereason", "mgt-sokoban", "direct-rl-geo")
    wanted |= {f"lmm_r1/{stage}-{preset}.yaml" for stage in stages for preset in ("script", "paper")}
    wanted |= {"lmm_r1/70b.yaml", "r1_v/clevr.yaml", "r1_v/geoqa.yaml"}
    wanted |= {"reasoning/gspo.yaml", "reasoning/dapo.yaml"}
    assert names >= wanted | {"world/grpo.yaml", "world/sft.yaml"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_builds_and_contradicts_nothing(path: Path) -> None:
    recipe = load(path)
    recipe.validate(check_files=False)
    assert isinstance(recipe.trainer, SFTConfig if path.stem.startswith("sft") else MMSearchGRPOConfig)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_explains_itself_and_how_it_is_launched(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    assert f"--config {path.relative_to(ROOT / 'recipes').with_suffix('')}\n" in text
    if "\nextends: " not in text:
        assert all(section in text for section in ("# Model --", "# Data --", "# Trainer --"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_that_extends_another_repeats_nothing_of_it(path: Path) -> None:
    own = yaml.safe_load(path.read_text())
    if "extends" in own:
        base = load(path.parent / own.pop("extends")).values
        assert [key for key, value in flat(own).items() if flat(base).get(key) == value] == []


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key."""
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_a_mistyped_key_of_a_recipe_is_refused(tmp_path: Path) -> None:
    text = (MMSEARCH_R1 / "qwen2.5-vl-7b.yaml").read_text().replace("epsilon:", "epsilom:")
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=r"r\.yaml: unknown key `epsilom`; did you mean `epsilon`"):
        load_recipe(tmp_path / "r.yaml", ON_CPU)


@pytest.mark.parametrize("name", ["qwen2.5-vl-7b", "qwen2.5-vl-3b", "qwen3-vl-8b"])
def test_the_script_preset_has_upstreams_values(name: str) -> None:
    recipe = load(MMSEARCH_R1 / f"{name}.yaml")
    trainer = recipe.trainer
    assert isinstance(trainer, MMSearchGRPOConfig) and trainer.num_generations is not None
    rollouts = trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps * 8
    assert (trainer.num_generations, rollouts // trainer.num_generations) == (4, 32)
    assert trainer.steps_per_generation == trainer.gradient_accumulation_steps
    assert (trainer.learning_rate, trainer.lr_sigmoid_ratio, trainer.lr_sigmoid_step) == (2e-6, 0.95, 45)
    assert (trainer.num_train_epochs, trainer.save_steps, trainer.eval_steps) == (30, 100, 100)
    check_shared_values(recipe)


def test_the_paper_preset_has_the_papers_values() -> None:
    recipe = load(MMSEARCH_R1 / "qwen2.5-vl-7b-paper.yaml")
    trainer = recipe.trainer
    assert isinstance(trainer, MMSearchGRPOConfig) and trainer.steps_per_generation is not None
    assert trainer.per_device_train_batch_size * trainer.steps_per_generation * 32 == 512 * 8
    assert trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps * 32 == 128 * 8
    assert (trainer.num_generations, trainer.learning_rate, trainer.lr_sigmoid_ratio) == (8, 2e-6, None)
    updates = trainer.steps_per_generation // trainer.gradient_accumulation_steps
    assert trainer.eval_steps is not None
    assert (updates, trainer.save_steps / updates, trainer.eval_steps / updates) == (4, 50, 50)  # the paper's steps
    assert recipe.rollout.image_search_first_turn_only
    check_shared_values(recipe)


@pytest.mark.parametrize("name", ["qwen2.5-3b", "qwen2.5-7b", "qwen2.5-3b-structure", "qwen2.5-7b-structure"])
def test_a_search_r1_preset_has_upstreams_values(name: str) -> None:
    recipe = load(SEARCH_R1 / f"{name}.yaml")
    trainer, rollout = recipe.trainer, recipe.rollout
    assert isinstance(trainer, MMSearchGRPOConfig) and trainer.steps_per_generation is not None
    per_micro_batch = trainer.per_device_train_batch_size * 8
    assert (trainer.num_generations, per_micro_batch) == (5, 64)
    assert per_micro_batch * trainer.steps_per_generation == 512 * 5
    assert per_micro_batch * trainer.gradient_accumulation_steps == 256
    assert (trainer.max_steps, trainer.warmup_steps, trainer.entropy_coef) == (10 * 1005, 0.285, 0.001)
    assert trainer.learning_rate == (5e-7 if name.endswith("structure") else 1e-6)
    assert (trainer.loss_type, trainer.beta, trainer.epsilon, trainer.temperature) == ("bnpo", 0.001, 0.2, 1.0)
    assert (trainer.use_bias_correction_kl, trainer.kl_clamp) == (False, True)
    assert (rollout.max_turns - 1, rollout.max_turn_tokens, rollout.max_observation_tokens) == (4, 500, 500)
    assert rollout.text_search_limit == 4 and recipe.data.max_prompt_length == 2048
    assert recipe.search.text == RetrieverConfig(url="http://127.0.0.1:8000", top_k=3)
    if name.endswith("structure"):
        reward = SearchR1RewardConfig(rule="structure", structure_score=0.2, invalid_score=0.1, retrieval_score=0.0)
    else:
        reward = SearchR1RewardConfig(rule="em")
    assert recipe.reward == reward


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_the_ppo_preset_has_upstreams_values(size: str) -> None:
    recipe, grpo = load(SEARCH_R1 / f"qwen2.5-{size}-ppo.yaml"), load(SEARCH_R1 / f"qwen2.5-{size}.yaml")
    trainer = recipe.trainer
    assert isinstance(trainer, MMSearchGRPOConfig) and trainer.steps_per_generation is not None
    per_micro_batch = trainer.per_device_train_batch_size * 8
    assert (trainer.num_generations, per_micro_batch) == (1, 64)
    assert per_micro_batch * trainer.steps_per_generation == 512
    assert per_micro_batch * trainer.gradient_accumulation_steps == 256
    assert (trainer.max_steps, trainer.warmup_steps, trainer.entropy_coef) == (2 * 1005, 0.285, 0.001)
    assert (trainer.learning_rate, trainer.lr_scheduler_type) == (1e-6, "constant_with_warmup")
    assert (trainer.loss_type, trainer.beta, trainer.epsilon, trainer.temperature) == ("bnpo", 0.001, 0.2, 1.0)
    assert trainer.estimator == EstimatorConfig(
        name="gae", gamma=1.0, lam=1.0, kl=KLConfig(coef=0.001, form="k1", place="reward")
    )
    assert trainer.critic == CriticConfig(
        model="full",
        learning_rate=1e-5,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=0.015,
        adam_beta1=0.9,
        adam_beta2=0.999,
        weight_decay=0.01,
        max_grad_norm=1.0,
        value_clip=0.5,
        epochs=1,
        warmup_batches=0,
    )
    same = ("data", "search", "rollout", "reward", "model")
    assert all(getattr(recipe, section) == getattr(grpo, section) for section in same)


def test_the_reasoning_presets_have_the_values_of_their_papers() -> None:
    gspo, dapo = (load(ROOT / "recipes" / "reasoning" / f"{name}.yaml") for name in ("gspo", "dapo"))
    for recipe in (gspo, dapo):
        trainer = recipe.trainer
        assert isinstance(trainer, MMSearchGRPOConfig) and trainer.steps_per_generation is not None
        per_micro_batch = trainer.per_device_train_batch_size * 8
        assert (trainer.num_generations, per_micro_batch * trainer.steps_per_generation) == (8, 64 * 8)
        assert per_micro_batch * trainer.gradient_accumulation_steps == 128
        assert (trainer.learning_rate, trainer.lr_scheduler_type, trainer.beta) == (1e-6, "constant", 0.0)
        assert (trainer.estimator, trainer.scale_rewards, trainer.weight_decay) == (None, "group", 0.01)
        assert (recipe.data.protocol, recipe.rollout.max_turn_tokens) == ("direct", 4096)
        assert recipe.model.model_name_or_path == "Qwen/Qwen3-VL-4B-Instruct"
    names = ("loss_type", "importance_sampling_level", "epsilon", "epsilon_high")
    values = [[getattr(recipe.trainer, name) for name in names] for recipe in (gspo, dapo)]
    assert values == [["grpo", "sequence", 3e-4, 4e-4], ["dapo", "token", 0.2, 0.28]]
    names = ("filter_zero_variance_groups", "carry_surplus_groups")
    assert [[getattr(recipe.trainer, name) for name in names] for recipe in (gspo, dapo)] == [[False] * 2, [True] * 2]
    overlong = OverlongConfig(max_tokens=4096, buffer=1024, factor=1.0)
    assert (gspo.reward.overlong, dapo.reward.overlong) == (None, overlong)


def check_shared_values(recipe: Recipe) -> None:
    trainer, rollout, reward = recipe.trainer, recipe.rollout, recipe.reward
    assert isinstance(trainer, MMSearchGRPOConfig) and isinstance(reward, RewardConfig)
    assert (trainer.loss_type, trainer.beta, trainer.epsilon, trainer.entropy_coef) == ("bnpo", 0.001, 0.2, 0.0)
    assert (trainer.scale_rewards, trainer.advantage_eps, trainer.num_iterations) == ("group", 1e-6, 1)
    assert (trainer.use_bias_correction_kl, trainer.kl_clamp) == (False, True)
    assert not trainer.filter_zero_variance_groups
    assert (trainer.adam_beta1, trainer.adam_beta2, trainer.weight_decay) == (0.9, 0.999, 0.01)
    assert (trainer.max_grad_norm, trainer.temperature, trainer.top_p) == (1.0, 1.0, 1.0)
    assert (trainer.eval_on_start, trainer.eval_temperature) == (True, 0.0)
    assert (rollout.max_turns, rollout.image_search_limit, rollout.text_search_limit) == (3, 1, 2)
    assert (rollout.max_turn_tokens, rollout.max_response_tokens) == (2048, 8192)
    assert recipe.data.max_prompt_length == 4096
    assert recipe.data.resize_images
    assert (reward.search_penalty, reward.format_penalty, reward.reward_mode) == (0.1, 0.1, "EM")


@pytest.mark.parametrize("path", ADAPTED, ids=lambda path: path.stem)
def test_a_lora_recipe_differs_from_its_base_by_the_adapter_only(path: Path) -> None:
    adapted, base = dict(load(path).values), dict(load(path.with_stem(path.stem.removesuffix("-lora"))).values)
    changed = {key for key in adapted | base if adapted.get(key) != base.get(key)}
    adapter = {"use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"}
    assert changed == adapter | {"dtype", "learning_rate", "output_dir"}
    assert adapted["use_peft"]


@pytest.mark.parametrize("name", ["single", "ddp", "zero2", "zero3", "fsdp2", "multi_node"])
def test_an_accelerate_configuration_is_understood_by_accelerate(name: str) -> None:
    config = load_config_from_file(str(ROOT / "accelerate_configs" / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert config.num_processes == {"single": 1, "multi_node": 16}.get(name, 8)
    assert config.num_machines == (2 if name == "multi_node" else 1)
