"""The reward against the recorded scores of MMSearch-R1's own code.

Where that code raises, ours has a documented answer instead: an empty transcript scores 0, a long one is simply not in
three-round form, missing options mean the defaults. Only an unknown mode is an error, and then before any training.
"""

from typing import Any

import pytest

from mmsearch_trl.rewards.answers import accepted_answers
from mmsearch_trl.rewards.matching import exact_match, substring_match
from mmsearch_trl.rewards.mmsearch import RewardConfig, score


Vector = dict[str, Any]
OPTIONS = ("search_penalty", "format_penalty", "reward_mode", "use_search_count_penalty")


def _config(vector: Vector, **overrides: Any) -> RewardConfig:
    given = {key: value for key, value in (vector["extra_info"] or {}).items() if key in OPTIONS}
    values: dict[str, Any] = {"format_rule": "three_rounds", **given, **overrides}
    return RewardConfig(**values)


def test_reward_vector(reward_vector: Vector) -> None:
    expected = reward_vector["expected"]
    if expected["error"] is not None:
        _check_where_upstream_raises(reward_vector)
        return
    parts = score(reward_vector["prediction"], accepted_answers(reward_vector["ground_truth"]), _config(reward_vector))
    assert parts.reward == pytest.approx(expected["score"], abs=1e-9)
    assert parts.format == expected["format_score"]
    assert parts.searches == expected["search_count"]
    assert parts.answer == expected["extracted_answer"]


def test_matching_of_vector(reward_vector: Vector) -> None:
    expected = reward_vector["expected"]
    golds = accepted_answers(reward_vector["ground_truth"])
    answer = expected["extracted_answer"]
    em, subem = (None, None) if answer is None else (exact_match(answer, golds), substring_match(answer, golds))
    assert (em, subem) == (expected["em"], expected["subem"])


def test_general_rule_accepts_all_that_three_rounds_accept(reward_vector: Vector) -> None:
    mode = {"reward_mode": "EM"}
    strict = score(reward_vector["prediction"], ["gold"], _config(reward_vector, **mode))
    general = score(reward_vector["prediction"], ["gold"], _config(reward_vector, format_rule="any_rounds", **mode))
    assert general.format >= strict.format
    assert (general.accuracy, general.searches, general.answer) == (strict.accuracy, strict.searches, strict.answer)


def _check_where_upstream_raises(vector: Vector) -> None:
    turns, expected = vector["prediction"], vector["expected"]
    golds = accepted_answers(vector["ground_truth"])
    mode = (vector["extra_info"] or {}).get("reward_mode", "EM")
    if mode not in ("EM", "SubEM"):
        with pytest.raises(ValueError, match="reward_mode must be one of EM, SubEM"):
            _config(vector)
        return
    parts = score(turns, golds, _config(vector))
    if not turns:
        assert (parts.reward, parts.accuracy, parts.format, parts.searches) == (0, 0, 0, 0)
    elif len(turns) > 3:
        right = float(bool(expected["em"]))
        assert (parts.format, parts.accuracy, parts.answer) == (0, right, expected["extracted_answer"])
        assert parts.reward == pytest.approx(0.9 * 0.9 * right, abs=1e-9)
    elif vector["extra_info"] is None:
        assert (parts.format, parts.searches) == (expected["format_score"], expected["search_count"])
        charged = 0.9 if parts.searches else 1.0
        assert parts.reward == pytest.approx(0.9 * charged * bool(expected["em"]) + 0.1 * parts.format, abs=1e-9)
    else:
        pytest.fail(f"no documented behaviour where upstream raises {expected['error']} ({vector['note']})")
