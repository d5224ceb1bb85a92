"""The trainer over whole steps: filtering with refill, epsilon, schedule, resuming, metrics and evaluation."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.trajectory import StopReason
from mmsearch_trl.rollout.upstream_limits import UpstreamLimits
from mmsearch_trl.trainer.advantages import group_advantages
from mmsearch_trl.trainer.schedules import sigmoid_decay_factor
from mmsearch_trl.trainer.surplus import Groups


pytestmark = pytest.mark.slow

FAMILY = tiny.qwen25()


def lucky_ids(completions: Sequence[Any], id: Sequence[str], **columns: Any) -> list[float]:
    """Rewards that differ within a group for tasks 0 and 3 only."""
    letters = tiny.by_letters(completions)
    return [letter if name in ("task0", "task3") else 0.5 for letter, name in zip(letters, id, strict=True)]


def constant(completions: Sequence[Any], **columns: Any) -> list[float]:
    return [1.0] * len(completions)


def test_filtering_trains_on_groups_that_differ_only_and_refills(tmp_path: Path) -> None:
    trainer = tiny.trainer(
        FAMILY,
        tmp_path,
        tiny.tasks(6),
        reward=lucky_ids,
        filter_zero_variance_groups=True,
        max_refills=30,
        max_steps=2,
    )
    rows = [row for row in trainer.train_dataset for _ in range(2)][2:6]
    batch = tiny.rollout_batch(trainer, rows)
    assert [trajectory.task.id for trajectory in batch.trajectories][::2] == [t.task.id for t in batch.trajectories][
        1::2
    ]
    assert {trajectory.task.id for trajectory in batch.trajectories} <= {"task0", "task3"}
    assert len(batch.trajectories) == 4 and (batch.output["advantages"] != 0).all()
    assert trainer._metrics["train"]["train/generation_batches"][0] >= 2
    trainer.train()
    for log in trainer.state.log_history[:2]:
        assert log["frac_reward_zero_std"] == 0


def test_what_was_carried_over_is_compared_with_the_policy_that_sampled_it(tmp_path: Path) -> None:
    options: dict[str, Any] = {"filter_zero_variance_groups": True, "carry_surplus_groups": True}
    trainer = tiny.trainer(FAMILY, tmp_path, tiny.tasks(4), **options)
    rows = list(trainer.train_dataset)
    given = [dict(row) for row in rows[:2] for _ in range(2)]
    first = tiny.rollout_batch(trainer, given)
    assert "old_per_token_logps" not in first.output and not len(trainer.surplus.groups)
    kept = [{key: value for key, value in row.items() if key != "images"} for row in given[:2]]
    carried = trainer.surplus.groups = Groups(kept, first.trajectories[:2])
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(1.1)
    second = tiny.rollout_batch(trainer, [dict(row) for row in rows[2:] for _ in range(2)])
    assert second.trajectories[:2] == carried.trajectories
    now, old = trainer.log_probs_of(second.output), second.output["old_per_token_logps"]
    mask = (second.output["tool_mask"] * second.output["completion_mask"]).bool()
    for i, trajectory in enumerate(second.trajectories):
        sampled = torch.tensor([value for turn in trajectory.turns for value in turn.logprobs])
        torch.testing.assert_close(old[i][mask[i]], sampled, atol=1e-4, rtol=0)
    assert (now - old)[:2].abs().max() > 1e-2 and len(trainer.surplus.groups) == 2


def test_filtering_that_finds_nothing_says_so(tmp_path: Path) -> None:
    trainer = tiny.trainer(FAMILY, tmp_path, reward=constant, filter_zero_variance_groups=True, max_refills=2)
    with pytest.raises(UserError, match="3 batches held 0 prompts with differing rewards, 2 are needed"):
        trainer.train()


def test_a_broken_rollout_does_not_make_a_group_informative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny.trainer(FAMILY, tmp_path, reward=constant, filter_zero_variance_groups=True, max_refills=1)
    run = trainer.rollouter.run

    def breaking(*arguments: Any, **options: Any) -> Any:
        report = run(*arguments, **options)
        report.trajectories[0].stop = StopReason.FAILED
        return report

    monkeypatch.setattr(trainer.rollouter, "run", breaking)
    with pytest.raises(UserError, match="held 0 prompts"):
        trainer.train()


def test_filtering_needs_whole_groups_on_every_rank(tmp_path: Path) -> None:
    trainer = tiny.trainer(FAMILY, tmp_path, filter_zero_variance_groups=True)
    with pytest.raises(ValueError, match="filter_zero_variance_groups needs whole groups"):
        trainer._generate_and_score_completions(list(trainer.train_dataset)[:3])


@pytest.mark.parametrize("eps", [1e-4, 1e-6, 0.5])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_have_the_configured_epsilon(eps: float, scale: str, tmp_path: Path) -> None:
    trainer = tiny.trainer(FAMILY, tmp_path, advantage_eps=eps, scale_rewards=scale)
    batch = tiny.rollout_batch(trainer, list(trainer.train_dataset))
    rewards = torch.tensor(tiny.by_letters([trajectory.messages for trajectory in batch.trajectories]))
    expected = group_advantages(rewards, 2, scale, eps)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(batch.output["advantages"], expected, atol=1e-5, rtol=1e-5)


def test_the_sigmoid_schedule_sets_the_rate_of_every_step(tmp_path: Path) -> None:
    trainer = tiny.trainer(FAMILY, tmp_path, max_steps=5, lr_sigmoid_ratio=0.6, lr_sigmoid_step=2)
    trainer.train()
    rates = [log["learning_rate"] for log in trainer.state.log_history if "loss" in log]
    assert rates == pytest.approx([1e-3 * sigmoid_decay_factor(step, 0.6, 2) for step in range(5)])


class _StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self._step


@pytest.mark.parametrize("options", [{}, {"filter_zero_variance_groups": True, "max_refills": 20}], ids=str)
@pytest.mark.parametrize("rows", [10, 4])
def test_a_resumed_run_is_the_uninterrupted_run(options: dict[str, Any], rows: int, tmp_path: Path) -> None:
    """In the middle of an epoch, at its end, and in a later one."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lr_sigmoid_ratio": 0.9} | options
    settings |= {"lr_sigmoid_step": 2}
    given = tiny.tasks(rows, images=(1, 0, 2))
    whole = tiny.trainer(FAMILY, tmp_path / "whole", given, **settings)
    whole.train()
    first = tiny.trainer(FAMILY, tmp_path / "cut", given, **settings)
    first.add_callback(_StopAfter(2))
    first.train()
    resumed = tiny.trainer(FAMILY, tmp_path / "cut", given, model=FAMILY.model(seed=5), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    watched = ("loss", "grad_norm", "learning_rate", "reward", "completions/mean_length", "num_tokens", "entropy")
    expected, found = (
        [[log[key] for key in watched] for log in run.state.log_history if "loss" in log] for run in (whole, resumed)
    )
    assert len(expected) == 4
    for one, other in zip(expected, found, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-5)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_best_checkpoint_s_weights_are_found(tmp_path: Path) -> None:
    trainer = tiny.trainer(FAMILY, tmp_path)
    trainer.save_model(str(tmp_path / "best"))
    expected = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for parameter in trainer.model.parameters():
        parameter.data.zero_()
    trainer.state.best_model_checkpoint = str(tmp_path / "best")
    trainer._load_best_model()
    assert all(value.equal(expected[name]) for name, value in trainer.model.state_dict().items())


def test_a_resumed_adapter_is_the_saved_one(tmp_path: Path) -> None:
    lora = {"peft_config": LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")}
    settings: dict[str, Any] = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2, **lora}
    whole = tiny.trainer(FAMILY, tmp_path, **settings)
    whole.train()
    resumed = tiny.trainer(FAMILY, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_metrics_of_the_house_are_logged(tmp_path: Path) -> None:
    trainer = tiny.trainer(FAMILY, tmp_path, save_traces=True)
    trainer.train()
    trainer.close()
    log = trainer.state.log_history[0]
    names = ["search/ratio", "search/image_ratio", "search/text_ratio", "search/cache_hit", "search/failure_rate"]
    names += ["search/latency_p95", "rollout/turns", "rollout/seconds", "rollout/engine_busy", "rollout/failed"]
    assert set(names) <= set(log) and all(math.isfinite(log[name]) for name in names)
    [path] = (tmp_path / "traces").glob("*.jsonl")
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 4


def test_several_iterations_and_generations_per_step_train(tmp_path: Path) -> None:
    options: Mapping[str, Any] = {"num_iterations": 2, "steps_per_generation": 2, "gradient_accumulation_steps": 1}
    trainer = tiny.trainer(FAMILY, tmp_path, tiny.tasks(6), per_device_train_batch_size=2, max_steps=4, **options)
    trainer.train()
    ratios = [log["clip_ratio/region_mean"] for log in trainer.state.log_history if "loss" in log]
    assert len(ratios) == 4 and ratios[0] == 0 and max(ratios) > 0, "later iterations are off policy, the first is not"


def test_gradient_accumulation_is_the_big_batch(tmp_path: Path) -> None:
    losses, weights = [], []
    for size, steps in ((8, 1), (2, 4)):
        trainer = tiny.trainer(
            FAMILY,
            tmp_path,
            tiny.tasks(4, images=(1, 0, 2, 3)),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_grad_norm=0.0,
            optim="sgd",
        )
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
        weights.append(trainer.model.lm_head.weight.detach().clone())
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=1e-5)


def test_upstream_s_limits_train_on_its_loss_mask(tmp_path: Path) -> None:
    limits = UpstreamLimits(max_turns=3, max_turn_tokens=6, max_response_tokens=30)
    trainer = tiny.trainer(FAMILY, tmp_path, limits=limits, per_device_train_batch_size=4)
    batch = tiny.rollout_batch(trainer, list(trainer.train_dataset))
    end = trainer.rollouter.protocol.chat.turn_end_id
    masks = (batch.output["tool_mask"] * batch.output["completion_mask"]).tolist()
    cut = 0
    for trajectory, mask in zip(batch.trajectories, masks, strict=True):
        ids = trajectory.completion_ids
        attended = len(ids) - ids[::-1].index(end) if end in ids else 0
        expected = [bit * (i < attended) for i, bit in enumerate(trajectory.loss_mask)]
        assert (mask + [0] * 30)[:30] == (expected + [0] * 30)[:30]
        cut += len(trajectory.completion_ids) == 30
    assert cut
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] > 0
