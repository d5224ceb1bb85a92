import json
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.rewards.answers import accepted_answers, number_text


TRIVIA = {
    "value": "Sinclair Lewis",
    "aliases": ["Harry Sinclair Lewis", "Lewis, (Harry) Sinclair"],
    "normalized_value": "sinclair lewis",
    "normalized_aliases": ["lewis harry sinclair"],
    "matched_wiki_entity_name": "",
    "type": "WikipediaEntity",
}


@pytest.mark.parametrize(
    ("truth", "answers"),
    [
        ("Ann Lee", ("Ann Lee",)),
        (1969, ("1969",)),
        (1969.0, ("1969",)),
        (-2.5, ("-2.5",)),
        (Decimal("3.10"), ("3.10",)),
        (1e20, ("1e+20",)),
        ([1969, "x"], ("1969", "x")),
        ([0, "zero"], ("0", "zero")),
        ({"value": "Ann Lee", "aliases": ["A. Lee"]}, ("Ann Lee", "A. Lee")),
        ({"aliases": ["A. Lee"], "value": "Ann Lee"}, ("Ann Lee", "A. Lee")),
        ({"target": ["Melville", 7]}, ("Melville", "7")),
        ({"text": ["Denver", "the Broncos"], "answer_start": [177, 5]}, ("Denver", "the Broncos")),
        ([{"answer": "net", "answer_confidence": "yes", "answer_id": 1}, {"answer": "a goal"}], ("net", "a goal")),
        (TRIVIA, ("Sinclair Lewis", *TRIVIA["aliases"], "sinclair lewis", "lewis harry sinclair")),
        ({"value": 5, "aliases": None, "target": None}, ("5",)),
        ('["Ann Lee", "A. Lee"]', ("Ann Lee", "A. Lee")),
        ('  ["Ann Lee", 1969]\n', ("Ann Lee", "1969")),
        ("['Ann Lee', \"O'Neill\"]", ("Ann Lee", "O'Neill")),
        ('{"value": "Ann Lee", "aliases": ["A. Lee"]}', ("Ann Lee", "A. Lee")),
        ({"value": "Ann Lee", "aliases": '["A. Lee"]'}, ("Ann Lee", "A. Lee")),
        ([["Ann Lee", ["A. Lee"]], [], [[1969]]], ("Ann Lee", "A. Lee", "1969")),
        (("Ann Lee", None, float("nan")), ("Ann Lee",)),
        (["Ann Lee", ""], ("Ann Lee", "")),
        (np.array(["Ann Lee", "A. Lee"]), ("Ann Lee", "A. Lee")),
        (np.int64(1969), ("1969",)),
        (None, ()),
        ([], ()),
        ("[]", ()),
        ("[Redacted]", ("[Redacted]",)),
        ('{"x": "y"}', ('{"x": "y"}',)),
        ("{x | x > 0}", ("{x | x > 0}",)),
        ("[0, 1)", ("[0, 1)",)),
    ],
)
def test_nothing_of_a_shape_is_dropped_and_nothing_else_becomes_an_answer(
    truth: Any, answers: tuple[str, ...]
) -> None:
    assert accepted_answers(truth) == answers


@pytest.mark.parametrize(
    ("truth", "reason"),
    [
        (True, "got True"),
        (["yes", False], "got False"),
        (float("inf"), "got inf"),
        (b"Ann", "got a bytes"),
        ({"x": "y"}, "the key x, and it is not known"),
        ({"value": "Ann", "nickname": "A"}, "the key nickname"),
        ({"type": "person"}, "the key type"),
        ({}, "the key none"),
        ("['a' 'b']", "neither JSON nor Python"),
        ('["a", "b" ]]', "neither JSON nor Python"),
        ('["\\ud83c"]', "surrogate"),
        (json.loads("[" * 50 + '"a"' + "]" * 50), "more than 16 deep"),
    ],
)
def test_what_may_be_no_answer_is_refused(truth: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as raised:
        accepted_answers(truth)
    assert len(str(raised.value)) < 400


def test_the_ground_truth_comes_first() -> None:
    assert accepted_answers("a", ["b"]) == accepted_answers("a", '["b"]') == ("a", "b")
    assert accepted_answers("Spain", '["Spain \\ud83c\\uddea\\ud83c\\uddf8", 7]') == ("Spain", "Spain 🇪🇸", "7")
    assert accepted_answers("Spain", "[]") == accepted_answers("Spain") == ("Spain",)


def test_the_callers_lists_are_not_changed() -> None:
    ground_truth, candidates = ["a"], ["b", 3]
    accepted_answers(ground_truth, candidates)
    assert (ground_truth, candidates) == (["a"], ["b", 3])


@pytest.mark.parametrize("text", ["Spain", '"box"', "3"])
def test_candidates_that_are_no_list_are_an_error(text: str) -> None:
    with pytest.raises(UserError, match="not a JSON list"):
        accepted_answers("a", text)


@pytest.mark.parametrize(
    ("value", "text"), [(7, "7"), (7.0, "7"), (0.1, "0.1"), (True, None), ("7", None), (float("nan"), None)]
)
def test_a_number_is_written_as_a_person_writes_it(value: Any, text: str | None) -> None:
    assert number_text(value) == text
