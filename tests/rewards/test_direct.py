"""The `reward:` section of `protocol: direct`: each key is honoured or refused."""

from typing import Any

import pytest

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.rewards.direct import DirectRewardConfig
from mmsearch_trl.rewards.remote import RemoteConfig
from mmsearch_trl.rewards.rule import Rollout


REMOTE = RemoteConfig(url=("http://127.0.0.1:5000/get_reward",))
GOOD = "<think>t</think><answer>60</answer>"


def rewarded(response: str, gold: str, **keys: Any) -> float:
    rule = DirectRewardConfig(**keys).scored_by
    assert rule is not None
    messages = [{"role": "assistant", "content": response}]
    query = "<|assistant|>\n" if keys.get("template") == "phi4" else "<|im_start|>assistant\n"
    [parts] = rule.score_batch([Rollout(messages=messages, answers=[gold], query=lambda: query + response)], None)
    rule.close()
    return parts.reward


@pytest.mark.parametrize(
    ("keys", "reward"),
    [
        ({}, 1.5),
        ({"format_weight": 0.0}, 1.0),
        ({"compat": "lmm_r1"}, 0.5),
        ({"compat": "lmm_r1", "template": "phi4"}, 0.0),
        ({"rule": "r1_v"}, 2.0),
        ({"rule": "r1_v", "format_weight": 0.25}, 1.25),
        ({"rule": "r1_v", "compat": "r1_v"}, 2.0),
        ({"rule": "answer"}, 1.0),
    ],
    ids=str,
)
def test_a_key_changes_what_is_paid(keys: dict[str, Any], reward: float) -> None:
    assert rewarded(GOOD, "60", **keys) == reward


def test_time_and_mode_are_the_recipes() -> None:
    endless = "<think>t</think><answer>$9^{9^{9^{9}}}$</answer>"
    assert rewarded(endless, "60", verify_timeout_s=0.1) == 0.5
    assert rewarded("<answer>the red car</answer>", "red", rule="answer") == 0.0
    assert rewarded("<answer>the red car</answer>", "red", rule="answer", reward_mode="SubEM") == 1.0


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"rule": "maths"}, "rule must be one of math, r1_v, answer, sokoban, none"),
        ({"compat": "r1_v"}, "compat: r1_v has no meaning under rule math"),
        ({"compat": "lmm_r1", "rule": "r1_v"}, "compat: lmm_r1 has no meaning under rule r1_v"),
        ({"template": "base"}, "template needs compat: lmm_r1"),
        ({"rule": "answer", "format_weight": 0.5}, "format_weight has no meaning under rule answer"),
        ({"rule": "answer", "verify_timeout_s": 2.0}, "verify_timeout_s has no meaning"),
        ({"reward_mode": "SubEM"}, "reward_mode has no meaning under rule math"),
        ({"format_weight": -1}, r"format_weight must be a number from 0 to 10"),
        ({"verify_timeout_s": 0}, "verify_timeout_s must be a number"),
        ({"verify_timeout_s": 61}, "verify_timeout_s must be a number from 0.01 to 60"),
        ({"rule": "none"}, "neither function nor models nor remote"),
        ({"function": ("a.py", "a.py")}, "function names a.py twice"),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        DirectRewardConfig(**keys)


def test_rewards_are_counted_in_the_order_of_their_weights() -> None:
    section = DirectRewardConfig(function=("a.py", "b.py:f"), models=("m",), remote=REMOTE)
    assert section.names() == ["the rule math", "a.py", "b.py:f", "m", "remote"]
    assert DirectRewardConfig(rule="none", remote=REMOTE).names() == ["remote"]
    assert DirectRewardConfig(rule="none", remote=REMOTE).scored_by is None
