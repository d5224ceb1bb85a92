"""The subtractive formula against the scores of the April-2025 code, which saw the whole transcript as one text."""

from typing import Any

import pytest

from mmsearch_trl.rewards.answers import accepted_answers
from mmsearch_trl.rewards.mmsearch import RewardConfig, score


def test_legacy_vector(legacy_vector: dict[str, Any]) -> None:
    expected = legacy_vector["expected"]
    options = RewardConfig(formula="subtractive")
    parts = score([legacy_vector["prediction"]], accepted_answers(legacy_vector["ground_truth"]), options)
    assert parts.reward == pytest.approx(expected["score"], abs=1e-9)
    assert (parts.format, parts.answer) == (expected["format"], expected["answer"])
