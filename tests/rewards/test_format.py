import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.rewards.format import (
    any_rounds_valid,
    asks_search,
    count_searches,
    extract_answer,
    single_search_valid,
    three_rounds_valid,
    well_formed_action,
)


ANSWER = "<reason>r</reason><answer>x</answer>"
IMAGE = "<reason>r</reason><search><img></search>"
TEXT = "<reason>r</reason><text_search>q</text_search>"

pieces = st.sampled_from(
    (
        *("<reason>", "</reason>", "<answer>", "</answer>", "<text_search>", "</text_search>"),
        *("<search><img></search>", "<search>", "<img>", "</search>", "word", "\n", " ", "<"),
    )
)
soup = st.lists(pieces, max_size=9).map("".join)
near_turns = st.tuples(
    st.sampled_from(["<reason>", ""]),
    soup,
    st.sampled_from(["</reason>", ""]),
    soup,
    st.sampled_from([ANSWER[18:], IMAGE[18:], TEXT[18:]]),
).map("".join)


def _by_pattern(turn: str) -> ActionKind:
    """The rule as the specification words it, in patterns and counts."""
    turn = turn.strip()
    tags = {tag: turn.count(tag) for tag in ("<answer>", "</answer>", "<text_search>", "</text_search>")}
    images = turn.count("<search><img></search>")
    if (turn.count("<reason>"), turn.count("</reason>")) != (1, 1):
        return ActionKind.NONE
    wanted = {
        ActionKind.ANSWER: (r"<answer>.*</answer>", (1, 1, 0, 0), 0),
        ActionKind.TEXT_SEARCH: (r"<text_search>.*</text_search>", (0, 0, 1, 1), 0),
        ActionKind.IMAGE_SEARCH: (r"<search><img></search>", (0, 0, 0, 0), 1),
    }
    for kind, (pattern, counts, image_count) in wanted.items():
        matches = re.match(rf"^<reason>.*</reason>.*{pattern}$", turn, re.DOTALL)
        if matches and tuple(tags.values()) == counts and images == image_count:
            return kind
    return ActionKind.NONE


@settings(max_examples=300)
@given(soup | near_turns)
def test_a_turn_is_well_formed_exactly_when_the_pattern_says_so(turn: str) -> None:
    assert well_formed_action(turn) is _by_pattern(turn)


@pytest.mark.parametrize(
    ("turn", "kind"),
    [
        (ANSWER, ActionKind.ANSWER),
        (IMAGE, ActionKind.IMAGE_SEARCH),
        (TEXT, ActionKind.TEXT_SEARCH),
        ("\n" + ANSWER + " \r\n", ActionKind.ANSWER),
        ("<reason></reason> so <answer></answer>", ActionKind.ANSWER),
        ("<reason>r</reason><text_search>a\nb</text_search>", ActionKind.TEXT_SEARCH),
        (ANSWER + " done.", ActionKind.NONE),
        ("<reason><answer>x</answer></reason>", ActionKind.NONE),
        ("<reason>r<answer>x</reason></answer>", ActionKind.NONE),
        ("<reason>r</reason></text_search><answer>x</answer>", ActionKind.NONE),
        ("<Reason>r</Reason><answer>x</answer>", ActionKind.NONE),
        ("", ActionKind.NONE),
    ],
)
def test_action_of_a_turn(turn: str, kind: ActionKind) -> None:
    assert well_formed_action(turn) is kind


def test_any_rounds_takes_searches_in_any_order_and_number_then_one_answer() -> None:
    assert any_rounds_valid([ANSWER])
    assert any_rounds_valid([TEXT, TEXT, ANSWER])
    assert any_rounds_valid([TEXT, IMAGE, TEXT, IMAGE, ANSWER])


@pytest.mark.parametrize("turns", [[], [IMAGE], [ANSWER, ANSWER], [IMAGE, "garbage", ANSWER], [ANSWER, IMAGE], [""]])
def test_any_rounds_refuses_what_does_not_search_then_answer(turns: list[str]) -> None:
    assert not any_rounds_valid(turns)


@settings(max_examples=200)
@given(st.lists(st.sampled_from([ANSWER, IMAGE, TEXT, "garbage"]), max_size=5))
def test_three_rounds_accept_four_sequences_and_any_rounds_accept_these_too(turns: list[str]) -> None:
    accepted = turns in ([ANSWER], [IMAGE, ANSWER], [TEXT, ANSWER], [IMAGE, TEXT, ANSWER])
    assert three_rounds_valid(turns) == accepted
    assert any_rounds_valid(turns) or not accepted


def test_the_last_answer_of_a_turn_is_extracted_and_stripped() -> None:
    assert extract_answer("<answer>a</answer><answer> b\n</answer>") == "b"
    assert extract_answer("<answer></answer>") == ""
    assert extract_answer("<answer>a") is None


def test_a_quoted_tag_counts_as_a_search_and_half_a_tag_does_not() -> None:
    assert asks_search("<reason>I could <search><img></search></reason><answer>x</answer>")
    assert not asks_search("<reason>or </text_search></reason><answer>x</answer>")


def test_searches_count_once_per_turn_and_never_in_the_last_of_several() -> None:
    both = IMAGE + TEXT
    assert count_searches([both, ANSWER]) == 1
    assert count_searches([IMAGE, TEXT, TEXT]) == 2
    assert count_searches([both]) == 1
    assert count_searches([]) == 0


def test_single_search_rule_wants_a_second_reason_after_a_search() -> None:
    assert single_search_valid(ANSWER)
    assert single_search_valid(IMAGE + "tool text" + ANSWER)
    assert not single_search_valid("<search><img></search>" + ANSWER)
    assert not single_search_valid("<reason>a\nb</reason><answer>x</answer>")
