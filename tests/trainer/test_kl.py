"""The KL term against MMSearch-R1's formula: d clamped to +-20, k3 to +-10, in value and in gradient."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from mmsearch_trl.trainer import trimmed
from mmsearch_trl.trainer.estimator_config import EstimatorConfig, KLConfig
from mmsearch_trl.trainer.kl import KLController, bounded_reference, estimated_kl, k3, reference_for_k2


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_what_stands_for_the_reference_has_k3_be_k2(dtype: torch.dtype) -> None:
    given = torch.tensor([[-1e4, -25.0, -3.0, -1.0, -0.1, -1e-3, -1e-8, 0.0, 1e-8, 1e-3, 0.1, 1.0, 3.0, 20.0, 95.0]])
    gradients, values = [], []
    for estimate in (
        lambda ref, log_probs: (ref - log_probs).square() / 2,
        lambda ref, log_probs: k3(reference_for_k2(ref, log_probs), log_probs),
    ):
        log_probs = torch.zeros_like(given, dtype=dtype).requires_grad_()
        value = estimate(given.to(dtype), log_probs)
        value.sum().backward()
        values.append(value.detach())
        gradients.append(log_probs.grad)
    exact = dtype is torch.float64
    torch.testing.assert_close(values[1], values[0], rtol=1e-9 if exact else 1e-4, atol=1e-12 if exact else 1e-6)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-8 if exact else 1e-4, atol=1e-9 if exact else 1e-6)


def test_the_estimates_are_schulman_s() -> None:
    reference, log_probs = torch.tensor([-2.0, -1.0]), torch.tensor([-1.5, -3.0])
    for form, right in (("k1", [0.5, -2.0]), ("k2", [0.125, 2.0]), ("k3", [0.106531, 4.389056])):
        torch.testing.assert_close(estimated_kl(form, reference, log_probs), torch.tensor(right))  # type: ignore[arg-type]


def test_the_coefficient_follows_its_target_from_batch_to_batch() -> None:
    """By OpenRLHF's rule: less 0.2 of the relative error at most, over the horizon."""
    controller = KLController(KLConfig(coef=0.1, target=0.5, horizon=1000))
    seen = []
    for kl in (0.55, 5.0, 0.1, -3.0):
        controller.begin()
        seen.append(controller.coef)
        controller.follow(kl, 100)
    right = [0.1]
    for error in (0.1, 0.2, -0.2):
        right.append(right[-1] * (1 + error * 100 / 1000))
    assert seen == pytest.approx(right, rel=1e-12)
    other = KLController(KLConfig(coef=0.1, target=0.5, horizon=1000))
    other.restore(controller.state)
    other.begin()
    controller.begin()
    assert other.coef == controller.coef


def test_a_coefficient_without_a_target_stays() -> None:
    controller = KLController(KLConfig(coef=0.1))
    controller.follow(9.0, 10_000)
    controller.begin()
    assert controller.coef == 0.1


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
    ("keys", "weight"),
    [
        ({"form": "k2", "place": "loss"}, 0.5),
        ({"form": "k3", "place": "loss"}, 0.5),
        ({"form": "k3", "place": "reward"}, 0.0),
    ],
    ids=str,
)
def test_the_kl_term_of_an_estimator_is_in_the_loss_or_in_the_reward(
    keys: dict[str, Any], weight: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimator = EstimatorConfig(name="rloo", kl=KLConfig(coef=0.5, **keys))
    options: dict[str, Any] = {"use_bias_correction_kl": False, "loss_type": "bnpo", "estimator": estimator}
    trainer = tiny.trainer(tiny.qwen25(), tmp_path, tiny.tasks(2), **options)
    log_probs = torch.full((1, 3), -2.0, requires_grad=True)
    reference = torch.tensor([[-2.5, -1.0, -6.0]])
    _fix_log_probs(monkeypatch, log_probs)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    advantages = torch.tensor([[0.3, -0.6, 0.9]])
    loss = trainer._compute_loss(trainer.model, _inputs(advantages, ref_per_token_logps=reference))
    kl = estimated_kl(estimator.kl.form, reference, log_probs).mean()
    assert loss.item() == pytest.approx((weight * kl - advantages.mean()).item(), rel=1e-5)
    assert trainer._metrics["train"].get("kl", []) == (pytest.approx([kl.item()], rel=1e-5) if weight else [])
    assert trainer.beta == 0.5  # the reference is forwarded for the next batch
    [found] = torch.autograd.grad(loss, log_probs, retain_graph=True)
    [right] = torch.autograd.grad(
        weight * kl - (advantages * (log_probs - log_probs.detach()).exp()).mean(), log_probs
    )
    torch.testing.assert_close(found, right, atol=1e-6, rtol=1e-4)


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
