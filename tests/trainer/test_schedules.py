import pytest
import torch

from mmsearch_trl.trainer.schedules import sigmoid_decay, sigmoid_decay_factor


def test_the_rate_starts_full_is_half_gone_at_the_step_and_stays_low() -> None:
    factors = [sigmoid_decay_factor(step, 0.95, 45) for step in (0, 45, 120, 1_000_000)]
    assert factors == pytest.approx([1.0, 0.525, 0.05, 0.05], abs=1e-4)


def test_the_rate_never_rises() -> None:
    factors = [sigmoid_decay_factor(step, 0.9, 10) for step in range(60)]
    assert factors == sorted(factors, reverse=True)


def test_a_ratio_of_zero_changes_nothing() -> None:
    assert {sigmoid_decay_factor(step, 0.0, 5) for step in range(20)} == {1.0}


def test_the_scheduler_applies_the_factor_to_every_group() -> None:
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [first], "lr": 1.0}, {"params": [second], "lr": 2.0}])
    scheduler = sigmoid_decay(optimizer, 0.5, 4)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.75, 1.5])


@pytest.mark.parametrize(
    ("ratio", "steps", "what"), [(1.5, 10, "ratio"), (-0.1, 10, "ratio"), (0.5, 0, "warmup_steps")]
)
def test_values_out_of_range_are_refused_when_the_scheduler_is_made(ratio: float, steps: int, what: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match=what):
        sigmoid_decay(optimizer, ratio, steps)
