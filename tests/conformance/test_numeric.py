"""Advantages, losses, schedule, masks, image sizes and metrics against numbers recorded from MMSearch-R1's code."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conformance.upstream import upstream_batch_metrics
from PIL import Image
from trl.trainer.grpo_trainer import GRPOTrainer

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import FinishReason
from mmsearch_trl.core.observation import Failure, FailureKind, Observation
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import Trajectory, Turn
from mmsearch_trl.data.images import resize_prompt_image
from mmsearch_trl.trainer.advantages import group_advantages
from mmsearch_trl.trainer.schedules import sigmoid_decay
from mmsearch_trl.trainer.trajectory_loss import trajectory_policy_loss


Case = dict[str, Any]

# Upstream's batch metrics that are not about search or reward; TRL logs its own in their place.
TRL_METRICS = {
    *(f"critic/{name}/{stat}" for name in ("advantages", "returns") for stat in ("mean", "max", "min")),
    *(f"prompt_length/{stat}" for stat in ("mean", "max", "min", "clip_ratio")),
    "response_length/clip_ratio",
}


def test_grpo_advantage(advantage_case: Case) -> None:
    rows_of = defaultdict(list)
    for row, uid in enumerate(advantage_case["uid"]):
        rows_of[uid].append(row)
    rewards = torch.tensor(advantage_case["rewards"])
    scale = "group" if advantage_case["grpo_normalize"] else "none"
    advantages = torch.zeros(len(rewards))
    for rows in rows_of.values():
        advantages[rows] = group_advantages(rewards[rows], len(rows), scale)
    tokens = advantages[:, None] * torch.tensor(advantage_case["eos_mask_row"])
    torch.testing.assert_close(tokens, torch.tensor(advantage_case["advantages"]), atol=2e-6, rtol=0)


def test_policy_loss(policy_loss_case: Case, tmp_path: Path) -> None:
    if policy_loss_case["traj_level_loss"]:
        loss = _trajectory_level(policy_loss_case)
    else:
        loss, clipped = _trl_bnpo(policy_loss_case, tmp_path)
        assert clipped == pytest.approx(policy_loss_case["pg_clipfrac"], abs=1e-6)
    assert loss == pytest.approx(policy_loss_case["pg_loss"], abs=1e-6)


def test_sigmoid_lr(schedule_case: Case) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=schedule_case["base_lr"])
    scheduler = sigmoid_decay(optimizer, schedule_case["decay_ratio"], schedule_case["warmup_steps"])
    rates = []
    for _ in range(schedule_case["step_lr"][-1][0] + 1):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    for step, rate in schedule_case["step_lr"]:
        assert rates[step] == pytest.approx(rate, rel=1e-9), f"step {step}"


def test_final_eos_mask(final_eos_case: list[list[int]], numeric: dict[str, Any]) -> None:
    """Upstream trains on nothing after the last end-of-turn token; a trajectory that ends without one is kept whole.

    Here the rule has no mask of its own: what follows a turn is a reply, and replies are not trained.
    """
    ids, mask = final_eos_case
    eos = numeric["final_eos_mask"]["eos"]
    end = len(ids) - ids[::-1].index(eos) if eos in ids else len(ids)
    trajectory = _trajectory(_turn(end_ids=ids[:end], reply_ids=ids[end:]))
    assert trajectory.completion_ids == ids
    assert trajectory.loss_mask == (mask if eos in ids else [1] * len(ids))


def test_prompt_image_resize(resize_case: Case) -> None:
    resized = resize_prompt_image(Image.new(resize_case["mode"], tuple(resize_case["in"])))
    assert list(resized.size) == resize_case["out"]
    assert resized.mode == resize_case["out_mode"]


def test_batch_metrics(metrics_case: Case) -> None:
    trajectories = [_from_text(*texts) for texts in metrics_case["assistant_vs_tool_text"]]
    metrics = upstream_batch_metrics(trajectories, metrics_case["scores"])
    assert metrics_case["metrics"].keys() == metrics.keys() | TRL_METRICS
    for name, value in metrics.items():
        assert value == pytest.approx(metrics_case["metrics"][name], abs=1e-6), name


def _trajectory_level(case: Case) -> float:
    return trajectory_policy_loss(
        torch.tensor(case["log_prob"]),
        torch.tensor(case["old_log_prob"]),
        torch.tensor(case["advantages"])[:, 0],
        torch.tensor(case["mask"]),
        case["clip_low"],
        case["clip_high"],
    ).item()


def _trl_bnpo(case: Case, out: Path) -> tuple[float, float]:
    """TRL's own loss code on the case's log-probs: the loss, and the share of clipped tokens."""
    mask, log_probs = torch.tensor(case["mask"]), torch.tensor(case["log_prob"])
    clipping = {"epsilon": case["clip_low"], "epsilon_high": case["clip_high"]}
    trainer: Any = tiny.trainer(tiny.qwen25(), out, loss_type="bnpo", beta=0.0, **clipping)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (log_probs, torch.zeros_like(log_probs), None)
    inputs = {
        "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(mask), 1),
        "completion_ids": torch.zeros(mask.shape, dtype=torch.long),
        "completion_mask": torch.ones_like(mask),
        "tool_mask": mask,
        "advantages": torch.tensor(case["advantages"]),
        "old_per_token_logps": torch.tensor(case["old_log_prob"]),
    }
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # set by a step of training
    loss = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    return loss.item(), trainer._metrics["train"]["clip_ratio/region_mean"][0]


def _turn(end_ids: list[int], reply_ids: list[int] | None = None, observation: Observation | None = None) -> Turn:
    return Turn(
        token_ids=tuple(end_ids),
        logprobs=(0.0,) * len(end_ids),
        finish_reason=FinishReason.STOP,
        text="",
        action=Action(ActionKind.NONE),
        observation=observation,
        reply_ids=tuple(reply_ids or ()),
    )


def _trajectory(*turns: Turn) -> Trajectory:
    return Trajectory(task=Task(id="t", question="?"), prompt=(), prompt_ids=(), turns=list(turns))


def _from_text(assistant: str, tool_text: str) -> Trajectory:
    """The trajectory that upstream's tool text tells of: one turn per character the model wrote, then its searches."""
    failure = Failure(FailureKind.UNAVAILABLE, "down") if "There is an error encountered" in tool_text else None
    tools = {ActionKind.IMAGE_SEARCH: "[Image Search Results]", ActionKind.TEXT_SEARCH: "[Text Search Results]"}
    searches = [Observation(tool=tool, failure=failure) for tool, header in tools.items() if header in tool_text]
    spare = [None] * (len(assistant) - len(searches))
    return _trajectory(*(_turn([0], observation=observation) for observation in (*searches, *spare)))
