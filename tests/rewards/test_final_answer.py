"""Reading a final answer takes time that grows with the answer and no faster."""

import time

import pytest

from mmsearch_trl.rewards.final_answer import LONGEST, boxes, readings, words
from mmsearch_trl.rewards.option_letter import option_in, options_in, options_of


@pytest.mark.parametrize(
    "part",
    [
        "1",
        "1,000 ",
        "$1",
        r"\boxed{",
        r"\[",
        "is ",
        "1/",
        "sqrt(",
        r"\text{",
        "1 cm ",
        "A ",
        "1 2/3 ",
        "**",
        "A, ",
        "(A)",
        "A and ",
        "AB",
    ],
)
def test_a_long_answer_is_read_in_a_moment(part: str) -> None:
    text = part * LONGEST
    start = time.process_time()
    assert len(list(readings(text))) < 4
    words(text)
    option_in(text)
    options_in(text)
    options_of(text)
    assert time.process_time() - start < 0.5, "4 s, where patterns take the square of it"


def test_boxes_are_the_outermost_that_are_closed() -> None:
    assert boxes(r"\boxed{\frac{1}{\boxed{2}}} and \fbox{3} and \boxed{4") == [r"\frac{1}{\boxed{2}}", "3"]
    assert boxes(r"\boxed{ \boxed{5} ") == ["5"] and boxes(r"\boxed{\{1\}}") == [r"\{1\}"] and boxes("}{") == []


def test_a_long_answer_is_read_from_its_end() -> None:
    assert list(readings("why " * LONGEST + "the answer is 60"))[-1] == "60"
