"""SIGKILL in the middle of training, and the same command again: the end is that of the uninterrupted run, to the bit.

A handful of points, each inside something; `python -m benchmarks.kill` draws them at random.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import torch
from core.command_lines import SFT, TRAIN
from forks import Forks
from runs import grpo_arguments, lessons, sft_arguments, write_jsonl
from safetensors.torch import load_file
from servers import Servers
from test_train import some_rows


pytestmark = pytest.mark.slow

STEPS = 4
KEYS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_steps": STEPS,
    "save_strategy": "steps",
    "save_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "logging_steps": 1,
    "freeze_vision": "false",
    "resume_from_checkpoint": "auto",
}
# What was learned by heart is said alike by all of a group, and there would be no gradient.
WARM: dict[str, Any] = {"temperature": 2.0}
FOUR_STEPS_ON_A_BATCH = WARM | {"steps_per_generation": 4, "gradient_accumulation_steps": 1}
LORA = {"use_peft": "true", "lora_r": 2, "lora_target_modules": "[q_proj,v_proj]"}
VARIANTS: dict[str, dict[str, Any]] = {
    "full, a batch a step": WARM | {"per_device_train_batch_size": 32},
    "full, four steps on a batch": FOUR_STEPS_ON_A_BATCH,
    "LoRA, four steps on a batch": FOUR_STEPS_ON_A_BATCH | LORA,
}

KILL = """
import os, signal, threading
from functools import wraps

def end():
    os.kill(os.getpid(), signal.SIGKILL)

def before(cls, name, number, act=end):
    method, calls = getattr(cls, name), []
    @wraps(method)
    def acting(*arguments, **options):
        calls.append(1)
        if len(calls) == number:
            act() if act is end else act(*arguments)
        return method(*arguments, **options)
    setattr(cls, name, acting)

from mmsearch_trl.evaluation.evaluator import Evaluator
from mmsearch_trl.rollout.rollouter import Rollouter
from mmsearch_trl.traces.files import TraceWriter
from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer as Trainer
from mmsearch_trl.trainer.sft import MMSearchSFTTrainer as Supervised
from mmsearch_trl.engine.vllm_sync import ServerSync
from mmsearch_trl.trainer.critic import Critic
from transformers import TrainerState
"""
POINTS = {
    "before the first step": "before(Rollouter, 'run', 1)",
    "in an update": "before(Trainer, '_clip_grad_norm', 3)",
    "in a save, between weights and optimizer": "before(Trainer, '_save_optimizer_and_scheduler', 2)",
    "in a save, in the state": """
def half(state, path):
    open(path, 'w').write('{"epoch": 0.')
    end()
before(TrainerState, 'save_to_json', 3, half)
""",
    "in a line of traces": """
def torn(writer, *rest):
    writer._file.write(b'{"id": "')
    writer._file.flush()
    end()
before(TraceWriter, 'write', 2, torn)
""",
    "in an evaluation": "before(Evaluator, '_finish', 1)",
    "when the last step is saved": "before(Trainer, 'save_model', 5)",
}
KILLED: dict[str, tuple[str, ...]] = {
    "full, a batch a step": ("in an update",),
    "full, four steps on a batch": tuple(POINTS),
    "LoRA, four steps on a batch": ("in an update", "in a save, between weights and optimizer"),
}
"""Every point once, and of the other variants what they change; `benchmarks.kill` has all of them."""


class Whole(NamedTuple):
    """The uninterrupted run: what its command is, and where it lies."""

    arguments: list[str]
    out: Path
    module: str = TRAIN


def command(home: Path, taught: Path, place: Path, **keys: Any) -> list[str]:
    """With `out` in the working directory as its output."""
    train = write_jsonl(place / "questions.jsonl", some_rows(home, 10))
    few = write_jsonl(place / "few.jsonl", some_rows(home, 2))
    given = KEYS | {"model_name_or_path": taught, "train_files": train, "eval_files": few} | keys
    return grpo_arguments(home, Path("out"), **given)


@pytest.fixture(scope="module")
def whole(
    request: pytest.FixtureRequest,
    forks: Forks,
    world_home: Path,
    taught: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Whole:
    place = tmp_path_factory.mktemp("whole")
    arguments = command(world_home, taught, place, **VARIANTS[request.param])
    done = forks.run(TRAIN, *arguments, folder=place)
    assert done.status == 0, done.err
    return Whole(arguments, place / "out")


def records(out: Path) -> list[Any]:
    """Of every trajectory, what was asked, sampled and earned; those of evaluations, which are written as they end, by
    their rows."""
    lines = [line for path in sorted((out / "traces").glob("*.jsonl")) for line in path.read_text().splitlines()]
    found = [json.loads(line) for line in lines]
    evaluated = sorted((r for r in found if r["split"] != "train"), key=lambda r: (r["split"], r["step"], r["id"]))
    kept = ("id", "split", "step", "prompt", "reward", "rewards", "advantage", "images")
    return [
        [[record[key] for key in kept], [[turn["text"], turn["action"]] for turn in record["turns"]]]
        for record in [*(r for r in found if r["split"] == "train"), *evaluated]
    ]


def check_same(found: Path, expected: Path) -> None:
    [name] = [path.name for path in expected.glob("*.safetensors")]
    weights, wanted = load_file(found / name), load_file(expected / name)
    assert weights.keys() == wanted.keys()
    assert [name for name, value in wanted.items() if not torch.equal(weights[name], value)] == []
    assert records(found) == records(expected)
    assert not list(found.glob("evaluation/*.parts"))


def check_killed_and_resumed(forks: Forks, whole: Whole, plant: str, folder: Path) -> None:
    killed = forks.run(whole.module, *whole.arguments, folder=folder, plant=KILL + plant)
    assert killed.status == -9, killed.err
    resumed = forks.run(whole.module, *whole.arguments, folder=folder)
    assert resumed.status == 0, resumed.err
    check_same(folder / "out", whole.out)


@pytest.mark.parametrize(
    ("whole", "point"),
    [(variant, point) for variant, points in KILLED.items() for point in points],
    indirect=["whole"],
    scope="module",
)
def test_a_killed_run_ends_as_the_uninterrupted_one(point: str, whole: Whole, forks: Forks, tmp_path: Path) -> None:
    check_killed_and_resumed(forks, whole, POINTS[point], tmp_path)


@pytest.mark.parametrize("whole", VARIANTS, indirect=True, scope="module")
def test_the_runs_that_are_compared_learn_something(whole: Whole) -> None:
    history = json.loads((whole.out / "trainer_state.json").read_text())["log_history"]
    norms = [log["grad_norm"] for log in history if "grad_norm" in log]
    assert sum(norm > 0 for norm in norms) >= 2, norms


def test_ppo_killed_while_its_critic_is_fitted_ends_with_both_models_of_the_uninterrupted_run(
    forks: Forks, world_home: Path, taught: Path, tmp_path: Path
) -> None:
    keys = WARM | {"num_generations": 1, "advantage_eps": 1e-4, "estimator.name": "gae", "eval_files": "[]"}
    keys |= {"critic.learning_rate": 1e-3, "critic.batch_size": 4, "eval_strategy": "'no'"}
    arguments = command(world_home, taught, tmp_path, **keys)
    done = forks.run(TRAIN, *arguments, folder=tmp_path)
    assert done.status == 0, done.err
    (tmp_path / "again").mkdir()
    plant = "before(Critic, '_update', 4)"
    check_killed_and_resumed(forks, Whole(arguments, tmp_path / "out"), plant, tmp_path / "again")
    saved = Path("out", f"checkpoint-{STEPS}", "critic", "critic.pt")
    assert (tmp_path / saved).read_bytes() == (tmp_path / "again" / saved).read_bytes()


@pytest.fixture(scope="module")
def supervised(forks: Forks, world_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Four steps over three demonstrations, of two each: the order of the second epoch is drawn anew."""
    place = tmp_path_factory.mktemp("supervised")
    keys = {"train_files": write_jsonl(world_home / "world" / "lessons.jsonl", lessons(world_home / "world"))}
    keys |= {"max_steps": STEPS, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    keys |= {"save_strategy": "steps", "save_steps": 1, "logging_steps": 1, "resume_from_checkpoint": "auto"}
    arguments = sft_arguments(world_home, Path("out"), **keys)
    done = forks.run(SFT, *arguments, folder=place)
    assert done.status == 0, done.err
    return Whole(arguments, place / "out", SFT)


@pytest.mark.parametrize(
    "plant",
    [
        "before(Supervised, '_clip_grad_norm', 3)",
        "before(Supervised, '_save_optimizer_and_scheduler', 2)",
        POINTS["in a save, in the state"],
    ],
    ids=["in an update", "in a save, between weights and optimizer", "in a save, in the state"],
)
def test_killed_supervised_training_ends_as_the_uninterrupted(
    plant: str, supervised: Whole, forks: Forks, tmp_path: Path
) -> None:
    check_killed_and_resumed(forks, supervised, plant, tmp_path)


def test_a_run_on_a_server_killed_in_a_sync_ends_as_the_uninterrupted_one(
    servers: Servers, forks: Forks, world_home: Path, taught: Path, tmp_path: Path
) -> None:
    keys = {"use_vllm": "true", "vllm_mode": "server", "vllm_server_base_url": servers.url(tiny.qwen25())}
    # How requests meet in a batch of vLLM moves the last bits of their log-probs, which the loss takes in.
    keys |= {"max_trajectories_in_flight": 1, "eval_files": "[]", "eval_strategy": "'no'", "max_steps": 3}
    arguments = command(world_home, taught, tmp_path, **keys)
    done = forks.run(TRAIN, *arguments, folder=tmp_path)
    assert done.status == 0, done.err
    (tmp_path / "again").mkdir()
    check_killed_and_resumed(
        forks, Whole(arguments, tmp_path / "out"), "before(ServerSync, 'publish', 2)", tmp_path / "again"
    )
