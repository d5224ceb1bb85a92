from types import SimpleNamespace
from typing import Any

import pytest

from mmsearch_trl.rewards.mmsearch import RewardConfig, score
from mmsearch_trl.rewards.rule_reward import RuleReward


RIGHT = "<reason>r</reason><answer>Titanic</answer>"
WRONG = "<reason>r</reason><answer>Olympic</answer>"
BARE = "<answer>Titanic</answer>"
IMAGE = "<reason>r</reason><search><img></search>"
TEXT = "<reason>r</reason><text_search>q</text_search>"
GOLD = ["Titanic"]


def _assistant(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("turns", "reward"),
    [
        ([RIGHT], 1.0),
        ([IMAGE, RIGHT], 0.91),
        ([IMAGE, TEXT, RIGHT], 0.91),
        ([BARE], 0.9),
        ([IMAGE, BARE], 0.81),
        ([WRONG], 0.1),
        ([IMAGE, WRONG], 0.1),
        ([IMAGE], 0.0),
        ([], 0.0),
    ],
)
def test_published_scores(turns: list[str], reward: float) -> None:
    assert score(turns, GOLD, RewardConfig()).reward == pytest.approx(reward, abs=1e-12)


def test_counted_penalty_multiplies_per_search() -> None:
    parts = score([IMAGE, TEXT, RIGHT], GOLD, RewardConfig(use_search_count_penalty=True))
    assert parts.reward == pytest.approx(0.9 * 0.81 + 0.1)
    assert parts.searches == 2


def test_more_rounds_than_three_are_valid_in_general_and_not_in_the_published_rule() -> None:
    turns = [IMAGE, TEXT, TEXT, RIGHT]
    assert score(turns, GOLD, RewardConfig()).format == 1
    strict = score(turns, GOLD, RewardConfig(format_rule="three_rounds"))
    assert (strict.format, strict.accuracy, strict.searches) == (0, 1, 3)


def test_subtractive_formula_charges_wrong_answers_once() -> None:
    options = RewardConfig(formula="subtractive")
    assert score([IMAGE, RIGHT], GOLD, options).reward == pytest.approx(0.91)
    assert score([IMAGE, WRONG], GOLD, options).reward == pytest.approx(0.01)
    assert score([IMAGE, TEXT, WRONG], GOLD, options).reward == pytest.approx(-0.09)


def test_penalty_warms_up_from_bonus_to_penalty() -> None:
    options = RewardConfig(search_penalty=0.1, search_penalty_warmup_steps=10)
    penalties = [options.search_penalty_at(step) for step in (0, 5, 10, 11)]
    assert penalties == pytest.approx([-0.1, 0.0, 0.1, 0.1])
    assert options.search_penalty_at(None) == 0.1
    assert score([IMAGE, RIGHT], GOLD, options, step=0).reward == pytest.approx(0.9 * 1.1 + 0.1)


def test_without_warm_up_the_penalty_is_full_at_the_first_step() -> None:
    assert RewardConfig().search_penalty_at(0) == 0.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"search_penalty": 1.5}, "search_penalty must be a number from -1 to 1, got 1.5"),
        ({"search_penalty": "1e-1"}, "search_penalty must be a number .* got '1e-1'"),
        ({"search_penalty": float("nan")}, "search_penalty must be a number"),
        ({"format_penalty": -0.1}, "format_penalty must be a number from 0 to 1"),
        ({"search_penalty_warmup_steps": -1}, "search_penalty_warmup_steps must be"),
        ({"reward_mode": "F1"}, "reward_mode must be one of EM, SubEM; got 'F1'"),
        ({"format_rule": "two"}, "format_rule must be one of any_rounds, three_rounds"),
        ({"formula": "x"}, "formula must be one of multiplicative, subtractive"),
        ({"formula": "subtractive", "use_search_count_penalty": True}, "use_search_count_penalty needs"),
    ],
)
def test_options_out_of_range_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardConfig(**values)


def test_only_assistant_messages_are_read() -> None:
    completion = [_assistant(IMAGE), _user(RIGHT + TEXT), _assistant(WRONG), _user("<answer>Titanic</answer>")]
    (parts,) = RuleReward(RewardConfig()).parts([completion], [GOLD])
    assert (parts.accuracy, parts.searches, parts.answer) == (0, 1, "Olympic")


def test_content_may_be_blocks_and_images_are_passed_over() -> None:
    blocks = [{"type": "text", "text": "<reason>r</reason>"}, {"type": "image"}, {"type": "text", "text": BARE}]
    assert RuleReward(RewardConfig())([[_assistant(blocks)]], [GOLD]) == [1.0]


def test_a_message_without_content_is_an_empty_turn() -> None:
    assert RuleReward(RewardConfig())([[_assistant(None)]], [GOLD]) == [0.0]


def test_a_plain_string_is_one_turn_and_a_gold_may_be_one_string() -> None:
    assert RuleReward(RewardConfig())([RIGHT], ["Titanic"]) == [1.0]


def test_candidate_answers_column_adds_accepted_answers() -> None:
    reward = RuleReward(RewardConfig())
    assert reward([WRONG, WRONG], [GOLD, GOLD], candidate_answers=['["Olympic"]', None]) == [1.0, 0.1]


def test_called_as_trl_calls_it_the_reward_logs_its_parts() -> None:
    logged: dict[str, float] = {}
    state: Any = SimpleNamespace(global_step=3)
    reward = RuleReward(RewardConfig(search_penalty_warmup_steps=4))
    rewards = reward(
        prompts=[[_user("?")]] * 2,
        completions=[[_assistant(IMAGE), _user("hits"), _assistant(RIGHT)], [_assistant("no")]],
        completion_ids=[[1], [2]],
        answers=[GOLD, GOLD],
        data_source=["any", "other"],
        trainer_state=state,
        log_extra=lambda column, values: None,
        log_metric=logged.__setitem__,
    )
    assert rewards == pytest.approx([0.9 * 0.95 + 0.1, 0.0])
    assert logged == pytest.approx(
        {"reward/accuracy": 0.5, "format/valid": 0.5, "reward/searches": 0.5, "reward/search_penalty": 0.05}
    )


def test_trl_reads_the_name_from_the_function() -> None:
    assert RuleReward(RewardConfig()).__name__ == "mmsearch"


@pytest.mark.parametrize("empty", [[], None, [None, float("nan")]])
def test_a_row_without_answer_is_named(empty: Any) -> None:
    with pytest.raises(ValueError, match="row 'fvqa_train_7' has no accepted answer"):
        RuleReward(RewardConfig())([RIGHT, RIGHT], [GOLD, empty], id=["fvqa_train_1", "fvqa_train_7"])
    with pytest.raises(ValueError, match="row 0 of the batch has no accepted answer"):
        RuleReward(RewardConfig())([RIGHT], [empty])


def test_a_missing_answers_column_is_named() -> None:
    with pytest.raises(ValueError, match="column 'answers'"):
        RuleReward(RewardConfig())([RIGHT])


def test_answers_have_any_shape_and_what_may_be_none_is_named() -> None:
    reward = RuleReward(RewardConfig())
    right = RIGHT.replace("Titanic", "1912")
    golds = [1912, ["x", 1912], {"value": "x", "aliases": [1912]}, '["x", "1912"]']
    assert reward([right] * 4, golds) == [1.0] * 4
    assert reward([RIGHT.replace("Titanic", "aliases")], [{"value": "x", "aliases": [1912]}]) == [pytest.approx(0.1)]
    with pytest.raises(ValueError, match=r"row 0 of the batch: the ground truth .* got True"):
        reward([right], [True])
