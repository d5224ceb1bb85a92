import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.questions import asked, bare_question, shown_images


SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
ASK = {"role": "user", "content": "Who is it?"}


@pytest.mark.parametrize(
    "prompt",
    [
        "Who is it?",
        [ASK],
        [SYSTEM, ASK],
        [SYSTEM, {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}, ASK],
        [ASK, {"role": "assistant", "content": "<think>"}],
        [{"role": "user", "content": [{"type": "text", "text": "Who is it?"}]}],
        [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": " Who is it? "}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}, "Who is it?"]}],
        [{"role": "user", "content": {"type": "text", "text": "Who is it?"}}],
        [{"content": "Who is it?"}],
        json.dumps([SYSTEM, ASK]),
    ],
)
def test_the_question_is_what_the_user_said_last(prompt: Any) -> None:
    assert asked(prompt) == "Who is it?"


def test_blocks_of_text_are_joined_by_lines() -> None:
    blocks = [{"type": "text", "text": "Look."}, {"type": "image"}, {"type": "text", "text": "Who?"}]
    assert asked([{"role": "user", "content": blocks}]) == "Look.\nWho?"


@pytest.mark.parametrize("prompt", [None, "", [{"role": "user", "content": None}], [{"role": "user", "content": []}]])
def test_an_empty_prompt_asks_nothing(prompt: Any) -> None:
    with pytest.raises(UserError, match="the question is empty"):
        bare_question(asked(prompt), 1)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ([], "no message of the user .roles: none"),
        ([SYSTEM], "no message of the user .roles: system"),
        ([SYSTEM, {"role": "assistant", "content": "Hi"}], "roles: system, assistant"),
        (["Who?"], "a list of messages"),
        ({"role": "user"}, "a list of messages"),
        ([{"role": "user", "content": [{"type": "video", "video": "x"}]}], "neither text nor image"),
        ([{"role": "user", "content": 3}], "neither text nor image"),
    ],
)
def test_a_prompt_in_which_nobody_asks_is_refused(prompt: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        asked(prompt)


@pytest.mark.parametrize(
    ("text", "images", "question"),
    [
        ("<image>\nWho is it?", 1, "Who is it?"),
        ("<image>Who is it?", 1, "Who is it?"),
        ("Who is it?\n<image>", 1, "Who is it?"),
        ("<image> <image>\n Who is it? ", 2, "Who is it?"),
        ("<IMAGE>\nWho?", 1, "Who?"),
        ("<image 1>\n<image_2>\nWho?", 2, "Who?"),
        ("<|vision_start|><|image_pad|><|vision_end|>Who?", 1, "Who?"),
        ("<|image_1|>\n<|image_2|>\nWho?", 2, "Who?"),
        ("<|image|>Who?", 1, "Who?"),
        ("Who?<start_of_image>", 1, "Who?"),
        ("<ImageHere>Who?", 1, "Who?"),
        ("Is <|image_2|> older than <|image_1|>?", 2, "Is image 2 older than image 1?"),
        ("Look here:\n<image>\nWho is it?", 1, "Look here:\nWho is it?"),
        ("Look:\n<image>\n<image>\nWho?", 2, "Look:\nWho?"),
        ("What does <image> show?", 1, "What does the image show?"),
        ("Is <image> older than <image>?", 2, "Is image 1 older than image 2?"),
        ("Is <image 2> older than <image 1>?", 2, "Is image 2 older than image 1?"),
        ("<image> Is it older than <image>?", 2, "Is it older than image 2?"),
        (" Who is it? ", 1, " Who is it? "),
        ("What does the <image> tag of SVG do?", 0, "What does the <image> tag of SVG do?"),
        ("What does <img> do?", 1, "What does <img> do?"),
    ],
)
def test_marks_of_images_are_left_out_or_become_words(text: str, images: int, question: str) -> None:
    assert bare_question(text, images) == question


@pytest.mark.parametrize("text", ["<image>\nWho?", "Who?<image>", "<|image_pad|>Who?"])
def test_a_mark_without_an_image_is_a_forgotten_image(text: str) -> None:
    with pytest.raises(UserError, match=r"has the mark .* of an image, and the row has no image"):
        bare_question(text, 0)


@pytest.mark.parametrize("text", [None, 3, ["Who?"], "", " \n", "<image>", "<image>\n<image> "])
def test_a_question_is_a_text_that_is_not_empty(text: Any) -> None:
    with pytest.raises(UserError, match="must be a text that is not empty"):
        bare_question(text, 1)


@given(st.lists(st.sampled_from(["<image>", "<image 2>", "Who", " ", "\n", "?", "x"]), max_size=12).map("".join))
def test_no_mark_is_ever_left(text: str) -> None:
    try:
        question = bare_question(text, 2)
    except UserError:
        assert not text.replace("<image>", "").replace("<image 2>", "").strip()
    else:
        assert "<image" not in question and question.strip()


def test_a_text_that_is_a_list_and_no_chat_is_a_text() -> None:
    assert asked("[1, 2]") == "[1, 2]" and asked("[1, 2 what follows?") == "[1, 2 what follows?"


def test_blocks_that_hold_an_image_are_told_from_its_place() -> None:
    held = [{"type": "image", "image": "a.png"}, {"type": "image_url", "image_url": {"url": "b"}}]
    places = [{"type": "image"}, {"type": "image", "image": None}, {"type": "text", "text": "Who?"}, "Who?"]
    assert shown_images([{"role": "user", "content": [*held, *places]}]) == held
    assert shown_images("Who?") == shown_images([{"role": "user", "content": None}]) == []
