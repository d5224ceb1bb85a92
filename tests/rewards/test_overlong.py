"""The soft penalty on long rollouts is DAPO's, of sampled tokens alone."""

from typing import Any

import numpy as np
import pytest
import tiny
import torch

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import FinishReason
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.trajectory import StopReason, Trajectory, Turn
from mmsearch_trl.rewards.overlong import OverlongConfig, OverlongPenalty
from mmsearch_trl.rollout.background_loop import BackgroundLoop
from mmsearch_trl.trainer.rewards import RewardFunctions


def test_the_penalty_is_that_of_the_paper_at_every_length() -> None:
    config = OverlongConfig(max_tokens=100, buffer=20, factor=0.5)
    lengths = np.arange(0, 130)
    paper = np.where(lengths <= 80, 0.0, np.where(lengths <= 100, (80 - lengths) / 20, -1.0))
    np.testing.assert_allclose([config.penalty(int(n)) for n in lengths], 0.5 * paper)


def test_the_buffer_may_be_all_of_the_length() -> None:
    assert OverlongConfig(max_tokens=4, buffer=4).penalty(1) == -0.25


def test_replies_of_tools_cost_nothing() -> None:
    [task] = tiny.tasks(1)
    turn = {"logprobs": (), "finish_reason": FinishReason.STOP, "text": "a", "action": Action(ActionKind.ANSWER)}
    turns = [Turn(token_ids=(1,) * 3, reply_ids=(2,) * 50, **turn), Turn(token_ids=(1,) * 4, **turn)]
    long = Trajectory(task=task, prompt=(), prompt_ids=(), turns=turns, stop=StopReason.ANSWERED)
    failed = Trajectory(task=task, prompt=(), prompt_ids=(), turns=turns, stop=StopReason.FAILED)
    penalty = OverlongPenalty(OverlongConfig(max_tokens=10, buffer=5, factor=2.0))
    functions = RewardFunctions([penalty], [None], torch.ones(1), {}, BackgroundLoop())
    rewards = functions([{"prompt": []}] * 2, [long, failed], None).values[:, 0]
    assert rewards[0] == pytest.approx(-2.0 * 2 / 5) and rewards[1].isnan()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"max_tokens": 10, "buffer": 0}, r"reward\.overlong\.buffer must be from 1 to max_tokens \(10\), got 0"),
        ({"max_tokens": 10, "buffer": 11}, r"reward\.overlong\.buffer must be from 1 to"),
        ({"max_tokens": 10, "buffer": 5, "factor": 0.0}, r"reward\.overlong\.factor must be above 0"),
        ({"max_tokens": 10, "buffer": 5, "factor": float("nan")}, r"reward\.overlong\.factor must be above 0"),
    ],
    ids=str,
)
def test_a_penalty_that_cannot_be_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        OverlongConfig(**keys)
