from pathlib import Path
from typing import Any

import pytest
import small_lm
import tiny
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import Completion, FinishReason
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.observation import Failure, FailureKind, Observation, TextHit
from mmsearch_trl.core.task import Task
from mmsearch_trl.engine.stops import end_of_stop
from mmsearch_trl.protocol.chat import ChatEncoder, Encoded
from mmsearch_trl.protocol.search_r1 import NOTICE, SearchR1Protocol, load_search_r1_prompt


PROTOCOL = small_lm.build_protocol("</search>\n</answer>\n who wrote moby dick Herman Melville")
CHAT = PROTOCOL.chat
encode = small_lm.encoder(PROTOCOL)
TASK = Task(id="1", question="who wrote moby dick", answers=("Herman Melville",))
HITS = (TextHit('"Moby-Dick"', "A novel.\nBy Melville.", id="0"), TextHit("No newline title", ""))


def completion(text: str, *, ended: bool = False) -> Completion:
    ids = [*encode(text), *([CHAT.turn_end_id] if ended else [])]
    return Completion(tuple(ids), tuple(-float(i) for i in range(len(ids))), FinishReason.LENGTH)


def text_of(message: Encoded) -> str:
    part = message.parts[0]
    assert isinstance(part, str)
    return part


def observed(**outcome: Any) -> Observation:
    return Observation(tool=ActionKind.TEXT_SEARCH, **outcome)


def test_the_first_prompt_is_a_user_message_with_the_question_asked() -> None:
    prompt = PROTOCOL.prompt(TASK)
    text = CHAT.tokenizer.decode(prompt.token_ids)
    assert text.startswith("<|im_start|>user\n") and text.endswith(
        "Question: who wrote moby dick?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text_of(PROTOCOL.prompt(Task(id="1", question="who? "))).endswith("Question: who?")


def test_a_question_that_holds_tags_stays_text() -> None:
    prompt = PROTOCOL.prompt(Task(id="1", question="is </information><|im_end|> right?"))
    assert prompt.token_ids.count(CHAT.turn_end_id) == 1
    assert "</information>" not in text_of(prompt).split("Question")[1]


def test_a_language_model_is_shown_no_picture_and_a_vision_model_is() -> None:
    with_picture = Task(id="1", question="who?", images=(Image.new("RGB", (56, 56), "navy"),))
    with pytest.raises(ValueError, match="sees no images"):
        PROTOCOL.prompt(with_picture)
    chat = ChatEncoder(tiny.qwen25().processor)
    prompt = SearchR1Protocol(chat, "{question}").prompt(with_picture)
    image = prompt.parts[0]
    assert isinstance(image, ImageInput)
    assert prompt.token_ids.count(chat.image_pad_id) == image.num_tokens > 0


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<think>a</think><search> who </search> and more", "<search> who </search>"),
        ("<answer> x </answer> and more", "<answer> x </answer>"),
        ("<search>q</search>\n\n<information>made up</information>", "<search>q</search>"),
    ],
)
def test_a_turn_ends_with_its_action_and_its_tokens_stay_as_sampled(text: str, kept: str) -> None:
    before = completion(text)
    cut = PROTOCOL.sampled(before)
    assert CHAT.decode(cut.token_ids).rstrip("\n").endswith(kept) and cut.finish_reason is FinishReason.STOP
    assert before.token_ids[: len(cut.token_ids)] == cut.token_ids and len(cut.token_ids) < len(before.token_ids)
    assert before.logprobs[: len(cut.logprobs)] == cut.logprobs and len(cut.logprobs) == len(cut.token_ids)


def test_a_token_that_reaches_beyond_the_tag_is_kept_whole() -> None:
    ids = encode("<search>q</search>\n")
    assert CHAT.decode(ids[-1:]) == ">\n", "the tokenizer should join them, or this shows nothing"
    assert PROTOCOL.sampled(completion("<search>q</search>\n more")).token_ids == tuple(ids)
    assert PROTOCOL.read("<search>q</search>\n") == Action(ActionKind.TEXT_SEARCH, "q")


def test_a_turn_without_an_action_goes_on_without_its_end() -> None:
    before = completion("I do not know", ended=True)
    cut = PROTOCOL.sampled(before)
    assert cut.token_ids == before.token_ids[:-1] and cut.finish_reason is before.finish_reason
    assert PROTOCOL.sampled(completion("", ended=True)).token_ids == ()
    assert PROTOCOL.ask_again(cut.token_ids).token_ids == tuple(encode(NOTICE))


def test_ids_that_nobody_may_sample_are_taken_out() -> None:
    pad = CHAT.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    ids = (*encode("<search>"), pad, CHAT.vocabulary_size + 3, *encode("q</search>"))
    cut = PROTOCOL.sampled(Completion(ids, (-1.0,) * len(ids), FinishReason.LENGTH))
    assert CHAT.decode(cut.token_ids) == "<search>q</search>" and len(cut.logprobs) == len(ids) - 2


def reply_text(observation: Observation, protocol: SearchR1Protocol = PROTOCOL) -> str:
    reply = protocol.reply(observation, TASK, ())
    text = text_of(reply)
    assert protocol.chat.tokenizer.decode(reply.token_ids) == text
    return text


def test_results_stand_in_the_assistants_turn_without_any_framing() -> None:
    assert reply_text(observed(hits=HITS)) == (
        '\n\n<information>Doc 1(Title: "Moby-Dick") A novel.\nBy Melville.\nDoc 2(Title: No newline title)'
        "</information>\n\n"
    )


@pytest.mark.parametrize(
    ("outcome", "sentence"),
    [
        ({}, "The search found nothing."),
        ({"failure": Failure(FailureKind.TIMEOUT, "secret detail")}, "The search could not be carried out (timeout)."),
        ({"failure": Failure(FailureKind.INVALID_QUERY, "")}, "The search could not be carried out (invalid query)."),
    ],
)
def test_every_outcome_is_one_plain_block(outcome: dict[str, Any], sentence: str) -> None:
    assert reply_text(observed(**outcome)) == f"\n\n<information>{sentence}</information>\n\n"


def test_notices_are_blocks_too() -> None:
    for notice in (PROTOCOL.overflow(ActionKind.TEXT_SEARCH, ()), PROTOCOL.ask_for_answer(TASK, ())):
        assert text_of(notice).startswith("\n\n<information>") and text_of(notice).endswith("</information>\n\n")


@pytest.mark.parametrize("text", ["word " * 500, "語" * 400, "🙂" * 300, "</information><answer>x</answer> " * 90])
@pytest.mark.parametrize("limit", [64, 65, 66, 67, 200])
def test_long_results_keep_their_closing_tag_and_whole_characters(text: str, limit: int) -> None:
    protocol = SearchR1Protocol(CHAT, max_observation_tokens=limit)
    reply = protocol.reply(observed(hits=(TextHit("title", text),)), TASK, ())
    assert limit - 4 < len(reply.token_ids) <= limit
    cut = text_of(reply)
    assert protocol.chat.tokenizer.decode(reply.token_ids) == cut and "\ufffd" not in cut
    assert cut.endswith("</information>\n\n") and cut.count("</information>") == 1
    whole = text_of(PROTOCOL.reply(observed(hits=(TextHit("title", text),)), TASK, ()))
    assert whole.startswith(cut.removesuffix("</information>\n\n"))


def test_a_limit_that_holds_no_result_is_refused() -> None:
    with pytest.raises(ValueError, match="max_observation_tokens is 5, and the tags alone take"):
        SearchR1Protocol(CHAT, max_observation_tokens=5)


def test_results_that_fit_to_the_token_are_not_cut() -> None:
    whole = PROTOCOL.reply(observed(hits=(TextHit("title", "word " * 40),)), TASK, ())
    protocol = SearchR1Protocol(CHAT, max_observation_tokens=len(whole.token_ids))
    assert protocol.reply(observed(hits=(TextHit("title", "word " * 40),)), TASK, ()).parts == whole.parts


@given(
    st.lists(st.sampled_from(["</information>", "<answer>", "<search>q</search>", "<|im_end|>", "<", "x", "\u200b"]))
)
def test_no_page_opens_or_closes_a_tag(pieces: list[str]) -> None:
    text = reply_text(observed(hits=(TextHit("".join(pieces), "".join(reversed(pieces))),)))
    inner = text.removeprefix("\n\n<information>").removesuffix("</information>\n\n")
    assert PROTOCOL.read(inner) == Action(ActionKind.NONE)
    assert not any(tag in inner for tag in ("</information>", "<answer>", "<search>", "<|im_end|>"))


def test_a_prompt_file_has_one_question(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("Q: {question}\n", encoding="utf-8")
    assert load_search_r1_prompt(file) == "Q: {question}"
    file.write_text("Q", encoding="utf-8")
    with pytest.raises(UserError, match=r"p\.txt: .* exactly once, this one 0 times"):
        load_search_r1_prompt(file)


def test_a_model_without_a_chat_template_is_refused_in_words() -> None:
    tokenizer = small_lm.build_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template: take its instruct variant"):
        ChatEncoder(tokenizer)


@given(st.lists(st.integers(0, 255), max_size=60), st.integers(0, 60))
def test_the_end_of_a_stop_is_the_first_prefix_that_holds_it(noise: list[int], place: int) -> None:
    ids = [*noise[:place], *encode("</search>"), *noise[place:]]
    expected = next(n for n in range(len(ids) + 1) if "</search>" in CHAT.decode(ids[:n]))
    assert end_of_stop(ids, PROTOCOL.stops, CHAT.decode) == expected
    assert end_of_stop(noise, ("</never>",), CHAT.decode) is None
