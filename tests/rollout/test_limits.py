from typing import Any

import pytest

from mmsearch_trl.rollout.limits import Limits


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_turns": 0}, "rollout.max_turns must be at least 1, got 0"),
        ({"max_turn_tokens": 0}, "rollout.max_turn_tokens must be at least 1"),
        ({"max_response_tokens": -1}, "rollout.max_response_tokens must be at least 1"),
        ({"image_search_limit": -1}, "rollout.image_search_limit must be at least 0"),
        ({"text_search_limit": -1}, "rollout.text_search_limit must be at least 0"),
        ({"max_search_failures_in_a_row": 0}, "rollout.max_search_failures_in_a_row must be at least 1, got 0"),
        ({"on_overflow": "cut"}, "rollout.on_overflow must be 'notice' or 'end', got 'cut'"),
        ({"forced_answer": True, "forced_answer_tokens": 8192}, "forced_answer_tokens must be smaller"),
    ],
)
def test_a_limit_out_of_range_names_its_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Limits(**values)
