"""LMM-R1's and R1-V's presets against the tables of what upstream runs with: scripts and paper, which differ."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mmsearch_trl.commands.main import main
from mmsearch_trl.recipe.recipe import Recipe, load_recipe
from mmsearch_trl.recipe.schedule import Batches
from mmsearch_trl.recipe.written import ON_A_CPU
from mmsearch_trl.rewards.direct import DirectRewardConfig
from mmsearch_trl.trainer.config import MMSearchGRPOConfig


ROOT = Path(__file__).parents[1]
BASE = "Qwen/Qwen2.5-VL-3B-Instruct"
PPO, BASELINE = "gae", "reinforce_baseline"

# start, data, estimator, learning rate of policy and critic, prompts and update, micro-batch, tokens, epochs, KL
SCRIPTS: dict[str, tuple[Any, ...]] = {
    "fre-text": (BASE, "deepscaler_message.jsonl", BASELINE, 4e-7, None, 256, 256, 2, 4096, 2, 1e-3),
    "fre-multi": (BASE, "mathv60k_message.jsonl", BASELINE, 1e-6, None, 256, 256, 2, 4096, 2, 1e-3),
    "mgt-geo": ("runs/lmm-r1-fre-text", "mathv_geo_message.jsonl", PPO, 1e-6, 9e-6, 256, 256, 2, 4096, 2, 1e-3),
    "mgt-percereason": (
        *("runs/lmm-r1-fre-text", "mathv60k_message.jsonl", BASELINE, 4e-7, None, 256, 256, 1, 8192, 2, 1e-3),
    ),
    "direct-rl-geo": (BASE, "mathv_geo_message.jsonl", PPO, 1e-6, 9e-6, 256, 256, 2, 4096, 2, 1e-3),
    "mgt-sokoban": (BASE, "sokoban", PPO, 1e-6, 5e-6, 128, 128, 1, 8196, 4, 0.0),
}
# The same of table A7; its batches are "train = rollout batch", micro-batches are not in it.
AFTER_FRE = "runs/lmm-r1-fre-text-paper"
PAPER: dict[str, tuple[Any, ...]] = {
    "fre-text": (BASE, "deepscaler_message.jsonl", PPO, 1e-6, 9e-6, 128, 128, 2, 8192, 1, 1e-3),
    "fre-multi": (BASE, "mathv60k_message.jsonl", PPO, 1e-6, 9e-6, 256, 256, 2, 8192, 2, 1e-3),
    "mgt-geo": (AFTER_FRE, "mathv_geo_message.jsonl", PPO, 4e-7, 9e-6, 256, 256, 2, 8192, 2, 1e-3),
    "mgt-percereason": (AFTER_FRE, "mathv60k_message.jsonl", BASELINE, 4e-7, None, 256, 256, 1, 8192, 2, 1e-3),
    "direct-rl-geo": (BASE, "mathv_geo_message.jsonl", PPO, 4e-7, 9e-6, 256, 256, 2, 8192, 2, 1e-3),
    "mgt-sokoban": (AFTER_FRE, "sokoban", PPO, 1e-6, 5e-6, 128, 128, 1, 8192, 4, 0.0),
}
PRESETS = [(f"{name}-script", row) for name, row in SCRIPTS.items()] + [
    (f"{name}-paper", row) for name, row in PAPER.items()
]


def load(name: str) -> Recipe:
    return load_recipe(f"lmm_r1/{name}", ON_A_CPU)


@pytest.mark.parametrize(("name", "row"), PRESETS, ids=[name for name, _ in PRESETS])
def test_a_preset_has_upstreams_values(name: str, row: tuple[Any, ...]) -> None:
    recipe = load(name)
    args = recipe.trainer
    assert isinstance(args, MMSearchGRPOConfig) and args.estimator is not None and args.steps_per_generation
    batches = Batches.of(args, 40_315, processes=8)
    [file] = recipe.data.train_files
    assert row == (
        recipe.model.model_name_or_path,
        Path(file).name,
        args.estimator.name,
        args.learning_rate,
        args.critic.learning_rate if args.critic else None,
        batches.prompts,
        batches.rollouts // batches.updates,
        args.per_device_train_batch_size,
        recipe.rollout.max_turn_tokens,
        args.num_train_epochs,
        args.estimator.kl.coef,
    )
    assert batches.updates == 16 and batches.rollouts == 16 * batches.prompts


@pytest.mark.parametrize("name", [name for name, _ in PRESETS])
def test_what_all_of_them_share(name: str) -> None:
    recipe = load(name)
    args, reward = recipe.trainer, recipe.reward
    assert isinstance(args, MMSearchGRPOConfig) and isinstance(reward, DirectRewardConfig) and args.estimator
    assert (args.num_generations, args.temperature, args.num_iterations, args.epsilon) == (16, 1.0, 1, 0.2)
    assert (args.estimator.gamma, args.estimator.kl.form, args.estimator.kl.place) == (1.0, "k1", "reward")
    assert args.estimator.name != PPO or args.estimator.lam == 1.0
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay, args.max_grad_norm) == (0.9, 0.95, 0.0, 1.0)
    assert (args.lr_scheduler_type, args.lr_scheduler_kwargs) == ("cosine_with_min_lr", {"min_lr_rate": 0.1})
    assert (args.warmup_steps, args.loss_type, args.entropy_coef) == (0.03, "bnpo", 0.0)
    assert (args.use_vllm, args.vllm_mode, args.vllm_enable_sleep_mode) == (True, "colocate", True)
    assert (args.vllm_gpu_memory_utilization, args.vllm_tensor_parallel_size) == (0.5, 1)
    assert recipe.data.protocol == "direct" and recipe.data.max_prompt_length == 4096
    rollouts = args.save_steps / 16
    assert (rollouts, args.save_total_limit) == (5 if "sokoban" in name else 20, 3)
    assert args.freeze_prefix == (["visual"] if "sokoban" in name else [])
    assert reward.rule == ("sokoban" if "sokoban" in name else "math")
    assert reward.rule == "sokoban" or reward.format_weight == 0.5


def test_the_batches_of_70b_are_those_of_fre_text_on_32_gpus() -> None:
    args = load("70b").trainer
    assert isinstance(args, MMSearchGRPOConfig)
    assert str(Batches.of(args, 40_315, processes=32)) == "256 prompts x 16 = 4,096 samples, 16 updates of 256"
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps * 32 == 256


def test_a_dry_run_tells_the_batches(world_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"message": json.dumps([{"role": "user", "content": "What is $1 + 1$?"}]), "answer": "$2$"}
    file = tmp_path / "deepscaler_message.jsonl"
    file.write_text(f"{json.dumps(row)}\n" * 40_315)
    keys = [
        f"--train_files={file}",
        f"--model_name_or_path={world_home / 'model'}",
        f"--output_dir={tmp_path / 'run'}",
    ]
    for preset, said in (
        ("script", "256 prompts x 16 = 4,096 samples, 16 updates of 256, 157 rollouts an epoch, 5,024 updates in all"),
        ("paper", "128 prompts x 16 = 2,048 samples, 16 updates of 128, 314 rollouts an epoch, 5,024 updates in all"),
    ):
        main(["train", "--dry_run", "--num_processes", "8", "--config", f"lmm_r1/fre-text-{preset}", *keys])
        assert f"batches: {said} on 40,315 questions, in 8 processes" in " ".join(capsys.readouterr().out.split())
    main(["check", "lmm_r1/fre-text-script", *keys])
    assert "4,096 samples, 16 updates of 256, 157 rollouts an epoch" in capsys.readouterr().out


R1_V = {
    "clevr": ("Qwen/Qwen2-VL-2B-Instruct", "leonardPKU/clevr_cogen_a_train", 8, 2, 512, 401_408, 0.04),
    "geoqa": ("Qwen/Qwen2.5-VL-3B-Instruct", "leonardPKU/GEOQA_R1V_Train_8K", 4, 4, 2048, 501_760, 0.04),
}


@pytest.mark.parametrize("name", R1_V)
def test_r1_vs_presets(name: str) -> None:
    recipe = load_recipe(f"r1_v/{name}", ON_A_CPU)
    args, reward = recipe.trainer, recipe.reward
    assert isinstance(args, MMSearchGRPOConfig) and isinstance(reward, DirectRewardConfig)
    model, data, gpus, accumulation, tokens, pixels, beta = R1_V[name]
    assert (recipe.model.model_name_or_path, recipe.data.train_files) == (model, [data])
    assert (args.gradient_accumulation_steps, recipe.rollout.max_turn_tokens) == (accumulation, tokens)
    assert (recipe.data.max_pixels, args.beta) == (pixels, beta)
    batches = Batches.of(args, 8_000, processes=gpus)
    assert (args.num_generations, batches.prompts, batches.updates) == (8, gpus * accumulation, 1)
    assert (args.learning_rate, args.num_train_epochs, args.loss_type) == (1e-6, 2, "grpo")
    assert (args.scale_rewards, args.advantage_eps, args.use_bias_correction_kl) == ("group", 1e-4, False)
    assert (reward.rule, reward.compat) == ("r1_v", None)


def test_the_slurm_file_gives_every_node_its_part(tmp_path: Path) -> None:
    """With a scheduler that stands in for Slurm's: it prints what each node would run."""
    programs = {
        "scontrol": "printf 'node7\\nnode8\\n'",
        "srun": 'shift; for rank in 0 1; do SLURM_NODEID=$rank "$@"; done',
        "mmsearch": 'echo "mmsearch $*"',
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    script = ROOT / "recipes" / "lmm_r1" / "slurm.sh"
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "41", "SLURM_NNODES": "2"}
    words = ["bash", str(script), "--config", "lmm_r1/70b", "--output_dir", "a run"]
    alone = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert alone.returncode != 0 and "start it with sbatch" in alone.stderr
    environment |= {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_GPUS_ON_NODE": "8"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for rank, line in enumerate(lines):
        assert line == (
            f"mmsearch train --accelerate multi_node --num_machines 2 --num_processes 16 --machine_rank {rank} "
            "--main_process_ip node7 --main_process_port 20041 --config lmm_r1/70b --output_dir a run "
            "--resume_from_checkpoint auto"
        )
    assert re.search(r"^#SBATCH --signal=", script.read_text(), re.MULTILINE)
