"""R1-V's reward, ours by default and theirs under `compat`."""

import pytest

from mmsearch_trl.rewards.r1_v import R1VRule
from mmsearch_trl.rewards.rule import Rollout
from mmsearch_trl.rewards.verify_pool import VerifyPool


def rewards(pool: VerifyPool, response: str, gold: str) -> tuple[float, float]:
    """By default, and as upstream."""
    rollout = Rollout(messages=[{"role": "assistant", "content": response}], answers=[gold])
    [ours], [theirs] = (R1VRule(pool, compat=compat).score_batch([rollout], None) for compat in (False, True))
    assert ours.reward == ours.accuracy + ours.format and theirs.reward == theirs.accuracy + theirs.format
    return ours.reward, theirs.reward


SAME = [
    ("<think>t</think><answer>3</answer>", "<answer> 3 </answer>", 2.0),
    ("<think>t</think> \n <answer> 3 </answer>", "3", 2.0),
    ("<think>t</think><answer>4</answer>", "<answer>3</answer>", 1.0),
    ("<answer>yes</answer>", "<answer>yes</answer>", 1.0),
    ("<answer>no</answer>", "<answer>yes</answer>", 0.0),
    ("<think>t</think><answer>$\\frac12$</answer>", "$0.5$", 2.0),
    ("", "3", 0.0),
    (r"It is \boxed{3}", "3", 1.0),
]


@pytest.mark.parametrize(("response", "gold", "reward"), SAME)
def test_where_both_agree(response: str, gold: str, reward: float, pool: VerifyPool) -> None:
    assert rewards(pool, response, gold) == (reward, reward)


DIFFERENT = [
    # The think part holds the right number, the answer another.
    ("<think>$3$ it is</think><answer>seven</answer>", "$3$", (1.0, 2.0)),
    # An answer in words on several lines.
    ("<think>t</think><answer>\nred\n</answer>", "red", (2.0, 1.0)),
    ("\n<think>t</think><answer>3</answer>", "3", (2.0, 1.0)),
    # Arguments of `verify`.
    (r"<think>t</think><answer>$(-\infty,3]$</answer>", r"$x\le 3$", (2.0, 1.0)),
    ("<think>t</think><answer>B. 12 cm</answer>", "B", (2.0, 1.0)),
    ("3", "3", (0.0, 1.0)),
]


@pytest.mark.parametrize(("response", "gold", "both"), DIFFERENT)
def test_where_upstream_is_wrong(response: str, gold: str, both: tuple[float, float], pool: VerifyPool) -> None:
    assert rewards(pool, response, gold) == both
