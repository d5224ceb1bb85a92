"""How turns are read, and what replies say."""

from typing import Any

import pytest
import tiny
import toy
from hypothesis import given
from hypothesis import strategies as st

from mmsearch_trl.core.action import SEARCHES, Action, ActionKind
from mmsearch_trl.core.completion import Completion, FinishReason
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.observation import Failure, FailureKind, ImageHit, Observation, TextHit
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.protocol.mmsearch import MMSearchProtocol
from mmsearch_trl.protocol.prompt_files import Prompts
from mmsearch_trl.protocol.reply_templates import ReplyTemplates
from mmsearch_trl.protocol.upstream_mmsearch import UpstreamMMSearchProtocol
from mmsearch_trl.rewards.format import extract_answer


CHAT = ChatEncoder(toy.build_processor())
PROMPTS = Prompts(
    first_turn="Look.\n{image} {question}",
    after_image_search="AFTER-IMG",
    after_text_search="AFTER-TXT",
    forced_answer="NOW: {question}",
)
OURS = MMSearchProtocol(CHAT, PROMPTS)
UPSTREAM = UpstreamMMSearchProtocol(CHAT.processor, PROMPTS)
[TASK] = tiny.tasks(1)
IMAGE = Action(ActionKind.IMAGE_SEARCH)
NONE = Action(ActionKind.NONE)


def text_search(query: str) -> Action:
    return Action(ActionKind.TEXT_SEARCH, query)


def answer(text: str) -> Action:
    return Action(ActionKind.ANSWER, text)


@pytest.mark.parametrize(
    ("text", "ours", "upstream"),
    [
        ("<reason>r</reason><search><img></search>", IMAGE, IMAGE),
        ("<search><img></search>\n", IMAGE, IMAGE),
        ("<search><img></search>\n\n", IMAGE, NONE),
        ("<search><img></search> ", IMAGE, NONE),
        ("<search><img></search>.", NONE, NONE),
        ("<search> <img> </search>", NONE, NONE),
        ("<text_search>who</text_search>", text_search("who"), text_search("who")),
        ("<text_search>who</text_search> \n", text_search("who"), NONE),
        ("<text_search> who </text_search>", text_search("who"), text_search(" who ")),
        ("<text_search>a\nb</text_search>", NONE, NONE),
        ("<text_search></text_search>", NONE, NONE),
        ("<text_search> </text_search>", NONE, text_search(" ")),
        ("<text_search>a</text_search><text_search>b</text_search>", text_search("b"), text_search("b")),
        ("<search><img></search><text_search>q</text_search>", text_search("q"), text_search("q")),
        ("<text_search>q</text_search><search><img></search>", IMAGE, IMAGE),
        ("<answer>x</answer><search><img></search>", IMAGE, IMAGE),
        ("<text_search>q</text_search><answer> x </answer>", answer("x"), answer("x")),
        ("<answer>x</answer><answer>y</answer> bye", answer("y"), answer("y")),
        ("<answer>a\nb</answer>", answer("a\nb"), answer("a\nb")),
        ("<answer>x", NONE, NONE),
        ("", NONE, NONE),
    ],
)
def test_a_turn_is_read_by_its_end(text: str, ours: Action, upstream: Action) -> None:
    assert (OURS.read(text), UPSTREAM.read(text)) == (ours, upstream)


@given(
    st.lists(
        st.sampled_from(
            [
                "<answer>",
                "</answer>",
                "<search>",
                "<img>",
                "</search>",
                "<text_search>",
                "</text_search>",
                "q",
                " ",
                "\n",
            ]
        )
    ).map("".join)
)
def test_every_text_has_one_reading_and_answers_are_the_reward_s(text: str) -> None:
    for protocol in (OURS, UPSTREAM):
        action = protocol.read(text)
        if action.kind is ActionKind.ANSWER:
            assert action.text == extract_answer(text)
        if action.kind is ActionKind.TEXT_SEARCH:
            assert action.text and "\n" not in action.text


def _sampled(protocol: MMSearchProtocol, ids: list[int]) -> Completion:
    return protocol.sampled(Completion(tuple(ids), tuple(-float(i) for i in range(len(ids))), FinishReason.LENGTH))


def test_ids_that_no_model_may_sample_go_with_their_log_probs() -> None:
    found = _sampled(OURS, [97, toy.IMAGE_PAD, 98, toy.LAST + 1, toy.VISION_START, 99])
    assert found == Completion((97, 98, 99), (-0.0, -2.0, -5.0), FinishReason.LENGTH)
    assert _sampled(OURS, [toy.IMAGE_PAD]).token_ids == ()


def test_upstream_overwrites_the_last_id_of_a_turn_without_an_end() -> None:
    assert _sampled(UPSTREAM, [97, 98]).token_ids == (97, toy.END)
    assert _sampled(UPSTREAM, [97, toy.PAD]).token_ids == (97, toy.END)
    assert _sampled(UPSTREAM, [97, toy.END, 98]).token_ids == (97, toy.END, 98)
    assert _sampled(UPSTREAM, []).token_ids == ()
    assert _sampled(OURS, [97, 98]).token_ids == (97, 98)


def _said(protocol: MMSearchProtocol, observation: Observation) -> str:
    ids = protocol.reply(observation, TASK, [toy.END]).token_ids
    return CHAT.tokenizer.decode(list(ids)).replace("<|image_pad|>", "")


def test_text_hits_are_worded_as_the_released_checkpoints_know_them() -> None:
    hits = (TextHit("T", "some text", url="http://a"), TextHit("Title", "more"))
    said = _said(OURS, Observation(tool=ActionKind.TEXT_SEARCH, hits=hits))
    assert said == (
        "\n<|im_start|>user\nSearched results: <information>"
        + ReplyTemplates().text_header
        + "1. (http://a) some text\n"
        f"2. (Title) more\n</information>\nOriginal user's question: {TASK.question}\nAFTER-TXT<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_image_hits_are_worded_as_the_released_checkpoints_know_them() -> None:
    hits = (ImageHit("A {rank} b", thumbnail=TASK.images[0]), ImageHit("no image"))
    said = _said(OURS, Observation(tool=ActionKind.IMAGE_SEARCH, hits=hits))
    body = "1. image: <|vision_start|><|vision_end|>\ntitle: A {rank} b\n2. title: no image\n"
    assert ReplyTemplates().image_header + body + "</information>\n" in said and said.count("AFTER-IMG") == 1


@pytest.mark.parametrize("tool", SEARCHES)
def test_a_failure_is_told_in_own_words_and_never_in_the_backend_s(tool: str) -> None:
    failure = Failure(FailureKind.RATE_LIMITED, "key=SECRET <|im_end|>")
    said = _said(OURS, Observation(tool=tool, failure=failure))
    assert "could not be carried out (rate limited)" in said and "SECRET" not in said and "<information>" not in said
    assert "There is an error encountered" in _said(UPSTREAM, Observation(tool=tool, failure=failure))


def test_nothing_found_is_no_failure() -> None:
    said = _said(OURS, Observation(tool=ActionKind.TEXT_SEARCH))
    assert "<information>[Text Search Results] The search found nothing." in said


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_first_prompt_holds_every_image_where_the_template_says(count: int) -> None:
    [task] = tiny.tasks(1, images=(count,))
    encoded = OURS.prompt(task)
    text = CHAT.tokenizer.decode(list(encoded.token_ids)).replace("<|image_pad|>", "")
    assert text.startswith(
        "<|im_start|>user\nLook.\n" + "<|vision_start|><|vision_end|>" * count + " " + task.question
    )
    assert sum(isinstance(part, ImageInput) for part in encoded.parts) == count


def test_upstream_s_own_first_prompt_works_as_it_is() -> None:
    prompts: Any = {"after_image_search": "", "after_text_search": "", "forced_answer": ""}
    upstream = MMSearchProtocol(CHAT, Prompts(first_turn="Here:\n<image> ", **prompts)).prompt(TASK)
    ours = MMSearchProtocol(CHAT, Prompts(first_turn="Here:\n{image} {question}", **prompts)).prompt(TASK)
    assert upstream.token_ids == ours.token_ids


def test_the_request_for_an_answer_quotes_the_question() -> None:
    text = CHAT.decode(OURS.ask_for_answer(TASK, [toy.END]).token_ids)
    assert text == f"\nuser\nNOW: {TASK.question}\nassistant\n"
