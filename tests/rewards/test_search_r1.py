"""What the recorded vectors leave open (`tests/conformance/test_search_r1_reward.py`): messages, notices, options."""

from typing import Any

import pytest

from mmsearch_trl.protocol.search_r1 import NOTICE
from mmsearch_trl.rewards.rule_reward import RuleReward
from mmsearch_trl.rewards.search_r1 import SearchR1RewardConfig, retrieved, structure_valid


GOLD = ("Herman Melville",)
FOUND = "\n\n<information>Doc 1(Title: Moby-Dick) By Herman Melville.</information>\n\n"


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def score(*messages: dict[str, str], **options: Any) -> Any:
    return SearchR1RewardConfig(**options).score_messages(messages, GOLD, None)


SEARCHED = (said("<think>a</think>\n<search>moby dick</search>"), read(FOUND))
RIGHT = (*SEARCHED, said("<think>b</think>\n<answer>herman melville</answer>"))


def test_turns_and_results_are_one_transcript() -> None:
    parts = score(*RIGHT, rule="structure")
    assert (parts.reward, parts.accuracy, parts.format, parts.searches) == (1.0, 1.0, 1.0, 1)
    assert parts.answer == "herman melville"


def test_a_result_is_no_answer_of_the_model() -> None:
    parts = score(said("<think>a</think>"), read("<information><answer>Herman Melville</answer></information>"))
    assert (parts.reward, parts.answer) == (0.0, None)


def test_results_that_hold_the_answer_are_paid_for_where_it_was_not_given() -> None:
    wrong = (*SEARCHED, said("<think>b</think>\n<answer>Poe</answer>"))
    options = {"rule": "structure", "structure_score": 0.2, "retrieval_score": 0.1}
    assert score(*wrong, **options).reward == pytest.approx(0.3)
    assert score(*wrong, rule="structure").reward == pytest.approx(0.2)
    assert retrieved(FOUND, GOLD) and not retrieved(FOUND, ("Poe",)) and not retrieved("Herman Melville", GOLD)


def test_a_notice_holds_an_answer_only_as_upstream_reads_it() -> None:
    messages = (said("I do not know"), read(NOTICE), said("nor now"))
    assert score(*messages).answer is None
    assert score(*messages, score_prompt=True).answer == "and"
    assert score(said("I do not know"), score_prompt=True).answer == "Beijing"


@pytest.mark.parametrize("text", ["", "<think>a</think>", "<answer>a</answer>", "x<think>a</think><answer>b</answer>"])
def test_less_or_more_than_the_form_is_no_valid_structure(text: str) -> None:
    assert not structure_valid(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "both"}, "reward.rule must be one of em, structure"),
        ({"format_score": 2}, "reward.format_score must be a number from 0 to 1"),
        ({"structure_score": "0.2"}, "reward.structure_score must be a number"),
        ({"reward_mode": "F1"}, "reward.reward_mode must be one of EM, SubEM"),
    ],
)
def test_a_wrong_value_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchR1RewardConfig(**options)


def test_it_is_a_reward_function_with_a_name_of_its_own() -> None:
    logged: dict[str, float] = {}
    reward = RuleReward(SearchR1RewardConfig())
    assert reward([list(RIGHT), [said("no")]], [GOLD, GOLD], log_metric=logged.__setitem__) == [1.0, 0.0]
    assert reward.__name__ == "search_r1"
    assert logged == {"reward/accuracy": 0.5, "format/valid": 0.5, "reward/searches": 0.5}
