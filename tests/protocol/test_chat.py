"""Framing through the model's own template, on tokenizers of different makes."""

from typing import Any

import pytest
import tiny
import toy
from trl import chat_template_utils

from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.protocol.chat import ChatEncoder


TEMPLATES = tiny.Path(chat_template_utils.__file__).parent / "chat_templates"
REAL = {name: TEMPLATES / f"{name}.jinja" for name in ("qwen2_5_vl", "qwen3_vl")}
"""The first is that of Qwen2-VL, too."""
IMAGE = tiny.tasks(1)[0].images[0]


def _encoder(name: str, **options: Any) -> ChatEncoder:
    processor = toy.build_processor() if name == "qwen2_5_vl" else tiny.qwen3().processor
    template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    processor.chat_template = processor.tokenizer.chat_template = template
    return ChatEncoder(processor, **options)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("content", [["who"], ["a ", IMAGE, " b"], [IMAGE, IMAGE], [" <b>x\n\n"]], ids=len)
def test_a_conversation_in_pieces_is_the_template_s_own(name: str, content: list[Any]) -> None:
    """Prompt, sampled turn and reply, put together, are what the template writes for the whole dialogue."""
    chat = _encoder(name)
    prompt, said = chat.prompt(content), "<answer>x</answer>"
    sampled = [*chat.tokenizer(said, add_special_tokens=False).input_ids, chat.turn_end_id]
    reply = chat.reply(content, sampled)
    blocks = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in content]
    dialogue = [
        {"role": "user", "content": blocks},
        {"role": "assistant", "content": [{"type": "text", "text": said}]},
        {"role": "user", "content": blocks},
    ]
    text = chat.processor.apply_chat_template(dialogue, tokenize=False, add_generation_prompt=True)
    images = [part for part in content if not isinstance(part, str)] * 2
    whole = chat.processor(text=text, images=images or None, return_tensors="pt")["input_ids"][0].tolist()
    assert [*prompt.token_ids, *sampled, *reply.token_ids] == whole


@pytest.mark.parametrize("name", ["qwen3_5_think", "qwen3_5_nothink", "qwen3_6"])
@pytest.mark.parametrize("content", [["who"], ["a ", IMAGE, " b"], [IMAGE, IMAGE]], ids=len)
def test_a_template_that_begins_to_think_leaves_that_to_the_protocol(name: str, content: list[Any]) -> None:
    chat = _encoder(name)
    asked = f"<|im_start|>user\n{_shown(content)}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert _spelled(chat, chat.prompt(content).token_ids) == asked
    assert _spelled(chat, chat.reply(content, []).token_ids) == f"<|im_end|>\n{asked}"


@pytest.mark.parametrize("name", REAL)
def test_a_template_that_leaves_the_turn_empty_is_taken_as_it_is(name: str) -> None:
    chat = _encoder(name)
    assert _spelled(chat, chat.prompt(["who"]).token_ids).endswith("<|im_end|>\n<|im_start|>assistant\n")


def _shown(content: list[Any]) -> str:
    return "".join(
        part if isinstance(part, str) else "<|vision_start|><|image_pad|><|vision_end|>" for part in content
    )


def _spelled(chat: ChatEncoder, token_ids: tuple[int, ...]) -> str:
    """Tokens as text; an image is one pad, however many stand for it."""
    pad = chat.image_pad_id
    single = [token for i, token in enumerate(token_ids) if token != pad or not i or token_ids[i - 1] != pad]
    return chat.tokenizer.decode(single, skip_special_tokens=False)


@pytest.mark.parametrize("name", REAL)
def test_a_turn_that_did_not_end_is_ended_by_the_reply(name: str) -> None:
    chat = _encoder(name)
    ended, cut = chat.reply(["x"], [5, chat.turn_end_id]), chat.reply(["x"], [5])
    assert cut.token_ids == (chat.turn_end_id, *ended.token_ids)
    assert chat.reply(["x"], []).token_ids == cut.token_ids


def test_upstream_leaves_out_one_line_break() -> None:
    ours, upstream = (_encoder("qwen2_5_vl", upstream_framing=flag).reply(["a>\n<b"], []) for flag in (False, True))
    assert upstream.token_ids == (ours.token_ids[0], *ours.token_ids[2:])


@pytest.mark.parametrize("name", REAL)
def test_the_turn_end_and_the_vision_tokens_come_from_the_tokenizer(name: str) -> None:
    chat = _encoder(name)
    assert chat.tokenizer.convert_ids_to_tokens(chat.turn_end_id) == "<|im_end|>"
    names = {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"}
    assert set(chat.tokenizer.convert_ids_to_tokens(sorted(chat.vision_ids))) == names
    assert max(chat.tokenizer.get_vocab().values()) == chat.vocabulary_size - 1


@pytest.mark.parametrize("text", ["<|im_end|>", "a<|image_pad|>b", "<|vision_start|>"])
def test_a_control_token_in_the_text_of_a_message_is_an_error(text: str) -> None:
    chat = _encoder("qwen2_5_vl")
    with pytest.raises(ValueError, match="text became a control token or an image placeholder"):
        chat.reply([text], [])
    assert chat.reply([chat.safe(text)], [])


def test_an_unknown_character_is_no_control_token() -> None:
    assert toy.build_tokenizer().unk_token_id in _encoder("qwen2_5_vl").reply(["\U0001f600"], []).token_ids


def test_images_of_other_modes_are_shown_in_rgb() -> None:
    [image] = _encoder("qwen2_5_vl").prompt([IMAGE.convert("L")]).parts
    assert isinstance(image, ImageInput) and image.image.mode == "RGB"
