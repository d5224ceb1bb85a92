"""Training with a critic: what each step asks of it, and that an interrupted run is the uninterrupted one."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainerCallback

from mmsearch_trl.core.errors import RunEnded, UserError
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.trainer.critic_config import CriticConfig
from mmsearch_trl.trainer.estimator_config import EstimatorConfig, KLConfig
from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer
from mmsearch_trl.trainer.log_probs import ScoredBatch


pytestmark = pytest.mark.slow

FAMILY = tiny.qwen25()
GAE = EstimatorConfig(name="gae", gamma=0.99, lam=0.95)
PPO: dict[str, Any] = {"estimator": GAE, "num_generations": 1, "per_device_train_batch_size": 2}
STEPS = 3


def trainer(
    out: Path, *, seed: int = 0, critic: Mapping[str, Any] | None = None, **options: Any
) -> MMSearchGRPOTrainer:
    config = CriticConfig(learning_rate=1e-3, **(critic or {}))
    settings = PPO | {"critic": config, "max_steps": STEPS} | options
    return tiny.trainer(FAMILY, out, tiny.tasks(6, images=(1, 0, 2)), model=FAMILY.model(seed=seed), **settings)


def weights(run: MMSearchGRPOTrainer) -> dict[str, torch.Tensor]:
    assert run.critic is not None
    both = [("", run.model.named_parameters()), ("critic:", run.critic._trained.items())]
    return {f"{whose}{name}": p.detach().clone() for whose, named in both for name, p in named}


def differing(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> list[str]:
    return [name for name in one if not torch.equal(one[name], other[name])]


def test_a_value_of_a_rollout_is_what_its_trajectory_alone_gives(tmp_path: Path) -> None:
    """With pictures in prompts and replies, and up to three turns."""
    run = trainer(tmp_path, per_device_train_batch_size=6)
    batch = tiny.rollout_batch(run, run.train_dataset)
    assert run.critic is not None
    values = run.critic.values(ScoredBatch.of_generated(batch.output))
    chat, model = run.rollouter.protocol.chat, run.critic._model
    for row, trajectory in enumerate(batch.trajectories):
        ids = torch.tensor([trajectory.token_ids])
        inputs: dict[str, Any] = {"input_ids": ids, "mm_token_type_ids": (ids == chat.image_pad_id).long()}
        if trajectory.images:
            features = [chat.images.features(image) for image in trajectory.images]
            inputs["pixel_values"] = torch.cat([feature.pixel_values for feature in features])
            inputs["image_grid_thw"] = torch.stack([feature.grid_thw for feature in features])
        with torch.no_grad():
            alone = model(**inputs)[0, len(trajectory.prompt_ids) - 1 : -1, 0]
        expected = alone * torch.tensor(trajectory.loss_mask)
        torch.testing.assert_close(values[row, : len(expected)], expected, atol=1e-5, rtol=1e-4)
    assert {len(trajectory.turns) for trajectory in batch.trajectories} >= {1, 3}
    run.close()


LAYOUTS: Mapping[str, tuple[int, dict[str, Any]]] = {
    "a batch a step": (1, {"critic": {"epochs": 2, "warmup_batches": 1}}),
    "two steps on a batch": (1, {"steps_per_generation": 2, "gradient_accumulation_steps": 1}),
    "two batches a step": (2, {"steps_per_generation": 1, "gradient_accumulation_steps": 2}),
    "adapters": (
        2,
        {
            "critic": {"model": "adapter"},
            "peft_config": LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        },
    ),
}
"""With the step that a run is resumed from."""


@pytest.mark.parametrize("step, options", LAYOUTS.values(), ids=LAYOUTS)
def test_a_resumed_run_ends_with_the_same_policy_and_critic(
    step: int, options: dict[str, Any], tmp_path: Path
) -> None:
    saved: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
    torch.manual_seed(0)
    whole = trainer(tmp_path / "whole", **saved, **options)
    before = weights(whole)
    whole.train()
    whole.close()
    after, trained = weights(whole), {name for name, p in whole.model.named_parameters() if p.requires_grad}
    assert set(differing(before, after)) == trained | {name for name in after if name.startswith("critic:")}
    shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", tmp_path / "cut" / f"checkpoint-{step}")
    torch.manual_seed(0)  # of an adapter's first weights, which the checkpoint replaces
    resumed = trainer(tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint="auto")
    resumed.close()
    assert differing(after, weights(resumed)) == []


class Asked(TrainerCallback):
    """Asks a run to end after the first micro-batch of its third step."""

    def __init__(self, run: MMSearchGRPOTrainer) -> None:
        self.run = run

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.run.preemption.requested |= state.global_step == 2


def test_a_run_that_was_asked_to_end_within_a_step_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """The critic was asked for the values of that step's batch, and was not fitted to it."""
    options: dict[str, Any] = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 3}
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    whole.close()
    ended = trainer(tmp_path / "ended", **options)
    ended.add_callback(Asked(ended))
    with pytest.raises(RunEnded):
        ended.train()
    ended.close()
    assert (tmp_path / "ended" / "checkpoint-2" / "critic").is_dir()
    resumed = trainer(tmp_path / "ended", **options)
    resumed.train(resume_from_checkpoint="auto")
    resumed.close()
    assert differing(weights(whole), weights(resumed)) == []


def test_the_policy_rests_while_the_critic_is_warmed_up(tmp_path: Path) -> None:
    options: dict[str, Any] = {"weight_decay": 0.5, "steps_per_generation": 2, "gradient_accumulation_steps": 1}
    run = trainer(tmp_path, critic={"warmup_batches": 1}, save_strategy="steps", save_steps=1, max_steps=4, **options)
    start = weights(run)
    run.train()
    run.close()
    saved = [load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors") for step in range(1, 5)]
    assert [differing(saved[0], other) == [] for other in saved] == [True] * 2 + [False] * 2
    states = [torch.load(tmp_path / f"checkpoint-{step}" / "optimizer.pt")["state"] for step in (2, 3, 4)]
    assert states[0] == {} and [int(states[i][0]["step"]) for i in (1, 2)] == [1, 2]
    moved = differing(start, weights(run))
    assert any(name.startswith("critic:") for name in moved) and any(not name.startswith("critic:") for name in moved)
    fits = [log["critic/loss"] for log in run.state.log_history if "critic/loss" in log]
    assert len(fits) == 2  # once a batch, at its first step
    assert all("critic/explained_variance" in log for log in run.state.log_history if "critic/loss" in log)
    assert run.state.global_step == 4


def test_a_critic_leaves_no_trace_in_what_is_exported(tmp_path: Path) -> None:
    adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    run = trainer(tmp_path, critic={"model": "adapter"}, peft_config=adapter, max_steps=1)
    run.train()
    run.save_model(str(tmp_path / "out"))
    run.close()
    assert not list((tmp_path / "out").glob("critic*")) and not [
        path for path in (tmp_path / "out").iterdir() if path.is_dir()
    ]
    names = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert names and not [name for name in names if "critic" in name or "head" in name]
    assert not [name for name, _ in run.policy.model.named_parameters() if "critic" in name]


def test_advantages_are_of_values_before_the_fit_and_the_kl_term_is_paid(tmp_path: Path) -> None:
    kl = KLConfig(coef=0.3)
    run = trainer(tmp_path, estimator=EstimatorConfig(name="gae", kl=kl, normalize="none"), max_steps=2, critic={})
    run.train()
    batch = tiny.rollout_batch(run, [run.train_dataset[i] for i in range(2)])
    sampled = (batch.output["tool_mask"] * batch.output["completion_mask"]).double()
    assert run.critic is not None
    [(_, given)] = run._to_fit
    kls = run.log_probs_of(batch.output).double() - batch.output["ref_per_token_logps"].double()
    assert kls.abs().max() > 1e-4
    rewards = torch.tensor(
        tiny.by_letters(
            [[{"role": "assistant", "content": turn.text} for turn in t.turns] for t in batch.trajectories]
        )
    )
    paid = -0.3 * kls * sampled
    for row in range(2):
        last = int(sampled[row].nonzero().max())
        paid[row, last] += rewards[row]
    returns = paid.flip(1).cumsum(1).flip(1) * sampled
    torch.testing.assert_close(given.returns.double(), returns, atol=1e-5, rtol=1e-4)
    advantages = (returns - run.critic.values(ScoredBatch.of_generated(batch.output)).double()) * sampled
    torch.testing.assert_close(batch.output["advantages"].double(), advantages, atol=1e-5, rtol=1e-4)
    run.close()


def letters(completions: Any, **columns: Any) -> list[float]:
    """A point for four letters `e`, and a part of it for fewer."""
    return [min(1.0, messages[-1]["content"].count("e") / 4) for messages in completions]


def test_ppo_learns_a_small_task_and_its_critic_to_foresee_the_reward(tmp_path: Path) -> None:
    """From one rollout of each prompt: nothing else tells what was good."""
    run = tiny.trainer(
        FAMILY,
        tmp_path,
        tiny.tasks(16, images=(0,)),
        reward=letters,
        protocol=FAMILY.protocol(),
        limits=Limits(max_turns=1, max_turn_tokens=6, max_response_tokens=100),
        critic=CriticConfig(learning_rate=3e-3, lr_scheduler_type="constant", warmup_steps=0),
        **PPO | {"per_device_train_batch_size": 16, "estimator": EstimatorConfig(name="gae"), "max_steps": 18},
    )
    run.train()
    run.close()
    rewards, losses = ([log[key] for log in run.state.log_history if key in log] for key in ("reward", "critic/loss"))
    assert sum(rewards[:3]) / 3 < 0.4 and sum(rewards[-3:]) / 3 > 0.9
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


def test_what_does_not_go_with_a_critic_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"critic\.batch_size: 3 does not divide a batch of 2"):
        trainer(tmp_path, critic={"batch_size": 3})
    with pytest.raises(UserError, match=r"critic is asked by estimator\.name gae alone"):
        tiny.config(tmp_path, critic=CriticConfig())
    with pytest.raises(UserError, match="set use_peft"):
        trainer(tmp_path, critic={"model": "adapter"})
    with pytest.raises(UserError, match="critic: fp16"):
        tiny.config(tmp_path, **PPO, fp16=True)
    assert tiny.config(tmp_path, **PPO).critic == CriticConfig()
