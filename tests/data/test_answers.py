import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.answers import gold_answers, listed_answers
from mmsearch_trl.rewards.matching import exact_match, normalize_answer, substring_match


@pytest.mark.parametrize(
    "candidates", [["box", 3, None, ""], '["box", 3, null, ""]', ("box", 3), {"aliases": ["box", 3]}, [["box"], 3]]
)
def test_candidates_may_be_a_list_or_its_json_and_numbers_count(candidates: object) -> None:
    assert gold_answers("a box", candidates) == ("a box", "box", "3")


def test_the_ground_truth_may_be_a_list_and_comes_first() -> None:
    truth = ["a box", "a case"]
    assert gold_answers(truth, ["box"]) == ("a box", "a case", "box")
    assert truth == ["a box", "a case"]


@pytest.mark.parametrize("truth", ["", "  ", None, [], [""], [None], "[]", [[]], float("nan"), {"value": ""}])
def test_an_empty_ground_truth_is_an_error_even_with_candidates(truth: object) -> None:
    with pytest.raises(UserError, match="ground truth is empty"):
        gold_answers(truth, ["box"])


@pytest.mark.parametrize(("candidates", "message"), [("box", "not a JSON list"), ('"box"', "list"), (3, "int")])
def test_candidates_of_another_kind_are_an_error(candidates: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        gold_answers("a box", candidates)


@given(golds=st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])).filter(str.strip), min_size=1))
def test_every_answer_is_kept_letter_by_letter(golds: list[str]) -> None:
    golds = [gold for gold in golds if gold.strip()[0] not in "[{"] or ["x"]
    assert listed_answers(golds) == tuple(golds)
    assert listed_answers(json.dumps(golds)) == tuple(golds)
    assert listed_answers([[gold] for gold in golds]) == tuple(golds)


@pytest.mark.parametrize("truth", ["A", "The", "+", "an", "(A)", "...", "a.", ["A", "the"], {"value": "$"}])
def test_an_answer_of_which_nothing_is_compared_is_refused(truth: Any) -> None:
    with pytest.raises(UserError, match=r"the answer '.*' cannot be scored.*an empty answer would be right"):
        gold_answers(truth)
    assert listed_answers(truth)


@pytest.mark.parametrize(
    ("truth", "candidates", "answers"),
    [
        ("dollar", ["$", "US dollar"], ("dollar", "US dollar")),
        ("$", ["dollar"], ("dollar",)),
        (["The The", "Matt Johnson"], None, ("Matt Johnson",)),
        ("西班牙", ["🇪🇸", "、"], ("西班牙", "🇪🇸", "、")),
        ("A Ä", None, ("A Ä",)),
    ],
)
def test_beside_others_such_an_answer_counts_for_nothing(
    truth: Any, candidates: Any, answers: tuple[str, ...]
) -> None:
    golds = gold_answers(truth, candidates)
    assert golds == answers
    assert not exact_match("", golds) and not substring_match("something else", golds)


@given(truth=st.lists(st.text("aAnthe .+-x", max_size=4), min_size=1, max_size=4))
def test_no_gold_answer_equals_an_empty_one(truth: list[str]) -> None:
    try:
        golds = gold_answers(truth)
    except UserError:
        assert all(len(normalize_answer(gold)) <= 1 for gold in truth)
    else:
        assert all(map(normalize_answer, golds))


CITIES = ["Paris", "Rome", "Oslo"]


@pytest.mark.parametrize(
    ("truth", "options", "answers"),
    [
        ("A", CITIES, ("Paris",)),
        ("c", CITIES, ("Oslo",)),
        ("(B)", CITIES, ("Rome",)),
        ("B.", json.dumps(CITIES), ("Rome",)),
        ("B", "['Paris', 'Rome', 'Oslo']", ("Rome",)),
        ("B", "A. Paris B. Rome C. Oslo", ("Rome",)),
        ("B", ["A. Paris", "B. Rome"], ("Rome",)),
        ("B", {"A": "Paris", "B": "Rome"}, ("Rome",)),
        ("B", {"label": ["A", "B"], "text": ["Paris", "Rome"]}, ("Rome",)),
        ("2", {"label": ["1", "2"], "text": ["Paris", "Rome"]}, ("Rome",)),
        (["A", "C"], CITIES, ("Paris", "Oslo")),
        ("B", [1968, 1969], ("1969",)),
        ("Rome", CITIES, ("Rome",)),
        ("B", ["A", "B", "AB", "O"], ("B",)),
        (20, [10, 20, 30], ("20",)),
        ("2", ["1", "2", "3"], ("2",)),
        ("X", CITIES, ("X",)),
        (1969, CITIES, ("1969",)),
        ("B", None, ("B",)),
        ("B", [], ("B",)),
    ],
)
def test_an_option_is_an_answer_by_its_text(truth: Any, options: Any, answers: tuple[str, ...]) -> None:
    assert gold_answers(truth, options=options, question="Which city?") == answers


def test_a_letter_answers_a_question_that_shows_its_options() -> None:
    question = "Which city?\nA. Paris\nB. Rome\nC. Oslo"
    assert gold_answers("B", options=CITIES, question=question) == ("B",)
    with pytest.raises(UserError, match="the answer 'A' cannot be scored"):
        gold_answers("A", options=CITIES, question=question)


@pytest.mark.parametrize(
    ("truth", "options"), [(0, CITIES), (1, CITIES), ("1", CITIES), (2, [1, 2, 3]), ([0], CITIES)]
)
def test_the_number_of_an_option_is_no_answer(truth: Any, options: Any) -> None:
    with pytest.raises(UserError, match="may be the number of one of 3 options: write its text"):
        gold_answers(truth, options=options, question="Which city?")


@pytest.mark.parametrize(
    ("truth", "options"), [("A", None), (["A", "B"], None), ("B", ["C", "A", "D"]), ("A", ["The"])]
)
def test_a_letter_that_cannot_be_scored_is_refused(truth: Any, options: Any) -> None:
    with pytest.raises(UserError, match="cannot be scored"):
        gold_answers(truth, options=options, question="Which?")
