"""The KL term against MMSearch-R1's formula: d clamped to +-20, k3 to +-10, in value and in gradient."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from mmsearch_trl.trainer import trimmed
from mmsearch_trl.trainer.kl import bounded_reference, k3


DIFFERENCES = [-1e4, -25.0, -20.5, -15.0, -11.1, -10.9, -3.0, -0.1, 0.0, 0.1, 2.5, 2.7, 9.0, 20.5, 95.0]


def upstream(reference: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    difference = (reference - log_probs).clamp(-20, 20)
    return (difference.exp() - difference - 1).clamp(-10, 10)


def test_value_and_gradient_are_upstream_s_at_every_distance() -> None:
    reference = torch.full((1, len(DIFFERENCES)), -2.0, dtype=torch.float64)
    gradients, values = [], []
    for estimate in (upstream, lambda ref, log_probs: k3(bounded_reference(ref, log_probs), log_probs)):
        log_probs = (reference - torch.tensor([DIFFERENCES], dtype=torch.float64)).requires_grad_()
        value = estimate(reference, log_probs)
        value.sum().backward()
        values.append(value.detach())
        gradients.append(log_probs.grad)
    torch.testing.assert_close(values[1], values[0], atol=1e-9, rtol=0)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-9, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["tokens", "trajectories"])
@pytest.mark.parametrize("clamp", [True, False])
def test_the_loss_takes_the_bounds_where_it_is_told_to(
    clamp: bool, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"beta": 0.5, "use_bias_correction_kl": False, "kl_clamp": clamp, "loss_type": "bnpo"}
    trainer = tiny.trainer(
        tiny.qwen25(), tmp_path, tiny.tasks(2), **options, trajectory_level_loss=level == "trajectories"
    )
    log_probs = torch.full((1, 3), -2.0, requires_grad=True)
    reference = torch.tensor([[-2.5, 3.0, -30.0]])
    _fix_log_probs(monkeypatch, log_probs)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    loss = trainer._compute_loss(trainer.model, _inputs(torch.zeros(1), ref_per_token_logps=reference))
    expected = upstream(reference, log_probs) if clamp else k3(reference, log_probs)
    assert loss.item() == pytest.approx(0.5 * expected.mean().item(), rel=1e-5)
    assert trainer._metrics["train"]["kl"] == pytest.approx([expected.mean().item()], rel=1e-5)
    [found] = torch.autograd.grad(loss, log_probs, retain_graph=True)
    [right] = torch.autograd.grad(0.5 * expected.mean(), log_probs)
    torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "inputs", "expected"),
    [
        ({}, {}, -1.0),
        ({"entropy_coef": 0.25}, {}, -1.0 - 0.25 * 0.6),
        ({"beta": 0.5, "use_bias_correction_kl": True}, {"old": -2.5, "ref": -2.0 - 1e-3}, None),
        # Thrice as likely to the trained policy as to the sampler that wrote it.
        ({"vllm_importance_sampling_mode": "sequence_mask"}, {"weight": 3.0}, -3.0),
    ],
    ids=str,
)
def test_what_goes_with_the_trajectory_level_loss_changes_it(
    option: dict[str, Any],
    inputs: dict[str, float],
    expected: float | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vllm = "vllm_importance_sampling_mode" in option
    trainer = tiny.trainer(tiny.qwen25(), tmp_path, tiny.tasks(2), trajectory_level_loss=True, **option)
    trainer.use_vllm = vllm
    log_probs = torch.full((1, 3), -2.0, requires_grad=True)
    _fix_log_probs(monkeypatch, log_probs)
    trainer.current_gradient_accumulation_steps = 1
    given: dict[str, Any] = {}
    if "weight" in inputs:
        given["importance_sampling_ratio"] = torch.tensor([[inputs["weight"]]])
    if "old" in inputs:
        given["old_per_token_logps"] = torch.full((1, 3), inputs["old"])
        given["ref_per_token_logps"] = torch.full((1, 3), inputs["ref"])
        ratio = torch.tensor(0.5).exp()
        estimate = k3(given["ref_per_token_logps"], log_probs.detach()).mean() * ratio
        expected = float(-(torch.tensor(1.2) ** 3) + 0.5 * estimate)
    trainer.model.train()
    loss = trainer._compute_loss(trainer.model, _inputs(torch.ones(1), **given))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def _fix_log_probs(monkeypatch: pytest.MonkeyPatch, log_probs: torch.Tensor) -> None:
    """Have forward passes give these, with an entropy of 0.6."""
    scored = (log_probs, torch.full_like(log_probs, 0.6))
    monkeypatch.setattr(trimmed, "score_tokens", lambda *args, **kwargs: scored)


def _inputs(advantages: torch.Tensor, **tensors: torch.Tensor) -> dict[str, Any]:
    ones = torch.ones(1, 3)
    return {
        "prompt_ids": torch.zeros(1, 1, dtype=torch.long),
        "prompt_mask": torch.ones(1, 1),
        "completion_ids": torch.zeros(1, 3, dtype=torch.long),
        "completion_mask": ones,
        "tool_mask": ones,
        "advantages": advantages,
        **tensors,
    }
