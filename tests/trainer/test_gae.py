"""Advantages and returns against a plain loop over each trajectory's sampled tokens."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsearch_trl.trainer.gae import gae


def by_loop(
    rewards: np.ndarray, values: np.ndarray, mask: np.ndarray, gamma: float, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """One row: `(t,)` each."""
    advantages, returns = np.zeros(len(mask)), np.zeros(len(mask))
    next_value = next_advantage = 0.0
    for place in reversed(np.flatnonzero(mask)):
        surprise = rewards[place] + gamma * next_value - values[place]
        next_advantage = surprise + gamma * lam * next_advantage
        next_value = values[place]
        advantages[place], returns[place] = next_advantage, next_advantage + values[place]
    return advantages, returns


TURNS = {
    "one turn": [1, 1, 1, 1, 1, 0, 0],
    "three turns with replies between": [1, 1, 0, 0, 0, 1, 0, 1, 1],
    "a reply at the end": [1, 0, 1, 1, 0, 0],
    "one token": [1],
    "nothing sampled": [0, 0, 0],
    "nothing at all": [],
}


@pytest.mark.parametrize("gamma, lam", [(1.0, 1.0), (0.99, 1.0), (1.0, 0.95), (0.9, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("turns", TURNS.values(), ids=TURNS)
def test_estimates_are_those_of_a_plain_loop(turns: list[int], gamma: float, lam: float) -> None:
    rng = np.random.default_rng(len(turns))
    mask = np.stack([turns, turns, [0] * len(turns)])  # a row of which nothing was sampled beside them
    rewards, values = rng.normal(size=(2, *mask.shape))
    found = gae(*(torch.tensor(each) for each in (rewards, values, mask)), gamma=gamma, lam=lam)
    for row in range(len(mask)):
        advantages, returns = by_loop(rewards[row], values[row], mask[row], gamma, lam)
        np.testing.assert_allclose(found.advantages[row], advantages, atol=1e-12)
        np.testing.assert_allclose(found.returns[row], returns, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4), st.floats(0, 1))
def test_what_is_not_sampled_changes_nothing(masks: list[list[bool]], lam: float) -> None:
    mask = torch.tensor(masks)
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, *mask.shape, generator=generator)
    found = gae(rewards, values, mask, gamma=0.9, lam=lam)
    again = gae(rewards.masked_fill(~mask, math.nan), values.masked_fill(~mask, math.nan), mask, gamma=0.9, lam=lam)
    for estimate, same in zip(found, again, strict=True):
        assert torch.equal(estimate, same)
        assert not estimate[~mask].any()


def test_a_reply_between_two_turns_takes_no_discount() -> None:
    one = gae(torch.tensor([[0.0, 0, 1]]), torch.zeros(1, 3), torch.ones(1, 3), gamma=0.5, lam=1.0)
    mask = torch.tensor([[1, 0, 0, 0, 1, 1]])
    bridged = gae(torch.tensor([[0.0, 9, 9, 9, 0, 1]]), torch.zeros(1, 6), mask, gamma=0.5, lam=1.0)
    assert one.advantages.tolist() == [[0.25, 0.5, 1.0]]
    assert bridged.advantages.tolist() == [[0.25, 0, 0, 0, 0.5, 1.0]]


def test_with_gamma_and_lambda_one_every_token_has_the_score_less_its_value() -> None:
    """To float32's last digit over a long row, since sums run in float64."""
    values, rewards = torch.full((1, 5000), 0.1), torch.zeros(1, 5000)
    rewards[0, -1] = 1.0
    found = gae(rewards, values, torch.ones(1, 5000), gamma=1.0, lam=1.0)
    torch.testing.assert_close(found.advantages, torch.full((1, 5000), 0.9), rtol=0, atol=1e-7)
    torch.testing.assert_close(found.returns, torch.ones(1, 5000), rtol=0, atol=1e-7)
