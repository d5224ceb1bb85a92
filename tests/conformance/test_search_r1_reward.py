"""Search-R1's rewards against the recorded scores of its own code.

Upstream reads the whole sequence, prompt included, and takes a single answer for none, since its prompt was meant to
hold one. The prompt holds two, so a transcript without an answer answers "Beijing": `score_prompt=True` does the same.
By default only the transcript is read; the two differ for such transcripts and for no others.

Upstream finds the transcript behind ChatML's marker of the assistant's turn. Six vectors have no such marker; there
the answer is compared, and the structure, which upstream then calls invalid whatever it is, is not.

A gold answer that is a text and no list is taken by upstream's retrieval rule for the list of its letters, one of
which is always found. Here it is one answer.
"""

import re
from typing import Any

import pytest

from mmsearch_trl.core.reward import RewardParts
from mmsearch_trl.rewards.answers import accepted_answers
from mmsearch_trl.rewards.matching import exact_match, normalize_answer, substring_match
from mmsearch_trl.rewards.search_r1 import SearchR1RewardConfig, extract_answer, retrieved, structure_valid


Vector = dict[str, Any]
ASSISTANT = "<|im_start|>assistant"
STRUCTURE_SCORES: dict[str, dict[str, Any]] = {
    "struct0.2_final0.1_retr0": {"structure_score": 0.2, "invalid_score": 0.1, "retrieval_score": 0.0},
    "struct0.2_final0.1_retr0.1": {"structure_score": 0.2, "invalid_score": 0.1, "retrieval_score": 0.1},
    "all0": {"structure_score": 0.0, "invalid_score": 0.0, "retrieval_score": 0.0},
}


def _score(vector: Vector, *, score_prompt: bool = True, **options: Any) -> RewardParts:
    transcript = vector["solution_str"].partition(ASSISTANT)[2]
    config = SearchR1RewardConfig(score_prompt=score_prompt, **options)
    return config.score_messages([{"role": "assistant", "content": transcript}], _golds(vector), None)


def _golds(vector: Vector) -> tuple[str, ...]:
    return accepted_answers(vector["golden_answers"])


def _has_marker(vector: Vector) -> bool:
    return ASSISTANT in vector["solution_str"]


def test_answer(search_r1_reward_vector: Vector) -> None:
    vector = search_r1_reward_vector
    answer = _score(vector).answer if _has_marker(vector) else extract_answer([vector["solution_str"]])
    assert answer == vector["extracted"]
    if answer is None:
        return
    golds = _golds(vector)
    assert normalize_answer(answer) == vector["normalized_prediction"]
    assert [normalize_answer(gold) for gold in golds] == vector["normalized_golds"]
    assert exact_match(answer, golds) == vector["em_check"]
    assert substring_match(answer, golds) == vector["subem_check"]


def test_structure_and_retrieval(search_r1_reward_vector: Vector) -> None:
    vector = search_r1_reward_vector
    assert structure_valid(vector["solution_str"].partition(ASSISTANT)[2]) == vector["format_valid"]
    letters_or_answers = vector["golden_answers"]
    assert retrieved(vector["solution_str"], letters_or_answers) == vector["retrieval_correct"]


def test_scores(search_r1_reward_vector: Vector) -> None:
    vector = search_r1_reward_vector
    if not _has_marker(vector):
        return
    assert _score(vector).reward == vector["score_em"]
    assert _score(vector, format_score=0.1).reward == vector["score_em_format_score_0_1"]
    assert _score(vector, reward_mode="SubEM").reward == vector["score_subem"]
    for name, options in STRUCTURE_SCORES.items():
        score = _score(vector, rule="structure", **options).reward
        letters_found = isinstance(vector["golden_answers"], str) and not vector["em_check"]
        expected = vector["score_em_structure"][name] - (options["retrieval_score"] if letters_found else 0.0)
        assert score == pytest.approx(expected), name


def test_the_default_differs_only_where_the_transcript_has_no_answer(search_r1_reward_vector: Vector) -> None:
    vector = search_r1_reward_vector
    ours, upstream = (_score(vector, score_prompt=flag, rule="structure") for flag in (False, True))
    if re.search("<answer>.*</answer>", vector["solution_str"].partition(ASSISTANT)[2], re.DOTALL):
        assert ours == upstream
    else:
        assert ours.answer is None and upstream.answer == "Beijing"
