"""A conversation reaches the model as the data set wrote it, in the model's own template, and nothing else does."""

from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest
import small_lm
import tiny
from PIL import Image

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import Completion, FinishReason
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.message import Message
from mmsearch_trl.core.task import Task
from mmsearch_trl.protocol.base import SearchProtocol
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.protocol.direct import DirectProtocol


SYSTEM = "Think in <think></think>, then <answer> $2$ </answer>; <search> is\tno tag here\u2060.\r\n"
PROCESSORS: dict[str, Callable[[], Any]] = {
    "qwen2.5-vl": lambda: tiny.qwen25().processor,
    "qwen3-vl": lambda: tiny.qwen3().processor,
    "language model": small_lm.build_tokenizer,
}


def published(name: str, processor: Any) -> Any:
    """A processor with the chat template of a published model, which TRL has as a file."""
    template = (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    for part in (processor, getattr(processor, "tokenizer", processor)):
        part.chat_template = template
    return processor


TEMPLATES: dict[str, Callable[[], Any]] = {
    "published qwen2.5-vl": lambda: published("qwen2_5_vl", tiny.qwen25().processor),
    "published qwen3-vl": lambda: published("qwen3_vl", tiny.qwen3().processor),
    "published qwen2.5": lambda: published("qwen2_5", small_lm.build_tokenizer()),
    "published qwen3": lambda: published("qwen3", small_lm.build_tokenizer()),
    "published llama 3.2": lambda: published("llama3_2", small_lm.build_tokenizer()),
}


@pytest.fixture(scope="module", params=PROCESSORS)
def processor(request: pytest.FixtureRequest) -> Any:
    return (PROCESSORS | TEMPLATES)[request.param]()


def picture(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (width % 255, 3, 5))


def as_transformers_has_it(
    processor: Any, messages: tuple[Message, ...], images: tuple[Image.Image, ...]
) -> list[int]:
    """The ids of `apply_chat_template(tokenize=True)`, pads expanded."""
    if not hasattr(processor, "image_processor"):
        chat = [{"role": message.role, "content": message.text} for message in messages]
        return processor.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    waiting = iter(images)
    chat = [
        {
            "role": message.role,
            "content": [
                {"type": "image", "image": next(waiting)} if part is None else {"type": "text", "text": part}
                for part in message.content
            ],
        }
        for message in messages
    ]
    encoded = processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=True)
    return encoded["input_ids"][0]


CONVERSATIONS: dict[str, tuple[tuple[Message, ...], int]] = {
    "a question": ((Message("user", ("what is 2 + 2?",)),), 0),
    "with a system message": ((Message("system", (SYSTEM,)), Message("user", ("<image> it is\n",))), 0),
    "earlier turns": (
        (
            Message("user", ("when was it founded",)),
            Message("assistant", ("<think>it is new</think><answer>1900</answer>",)),
            Message("user", ("are you sure?",)),
        ),
        0,
    ),
    "pictures between texts": ((Message("user", ("left:", None, "right:", None, None, "which city?")),), 3),
    "pictures of earlier turns": (
        (
            Message("system", (SYSTEM,)),
            Message("user", (None, "who")),
            Message("assistant", ("nobody",)),
            Message("user", ("and", None)),
        ),
        2,
    ),
    "an empty system message": ((Message("system", ()), Message("user", ("who",))), 0),
}


@pytest.mark.parametrize(
    ("processor", "name"),
    [
        (kind, name)
        for kind in (*PROCESSORS, *TEMPLATES)
        for name, (_, pictures) in CONVERSATIONS.items()
        if not pictures or "-vl" in kind
    ],
    indirect=["processor"],
)
def test_the_ids_are_those_of_the_processors_own_template(processor: Any, name: str) -> None:
    messages, count = CONVERSATIONS[name]
    images = tuple(picture(30 + 13 * i, 60) for i in range(count))
    protocol = DirectProtocol(ChatEncoder(processor))
    encoded = protocol.prompt(Task(id="1", question="who", images=images, messages=messages))
    assert list(encoded.token_ids) == as_transformers_has_it(processor, messages, images)
    protocol.chat.check_conversation(messages)


def test_a_task_without_messages_is_one_message_of_its_images_and_question(processor: Any) -> None:
    images = (picture(40, 40), picture(56, 30)) if hasattr(processor, "image_processor") else ()
    protocol = DirectProtocol(ChatEncoder(processor))
    asked = (Message("user", (*(None for _ in images), "<think>who")),)
    encoded = protocol.prompt(Task(id="1", question="<think>who", images=images))
    assert list(encoded.token_ids) == as_transformers_has_it(processor, asked, images)


def test_trusted_texts_are_kept_to_the_letter(processor: Any) -> None:
    protocol = DirectProtocol(ChatEncoder(processor))
    messages = (Message("system", (SYSTEM,)), Message("user", ("</answer> <img> [INST] <information>",)))
    ids = protocol.prompt(Task(id="1", question="", messages=messages)).token_ids
    written = protocol.chat.tokenizer.decode(list(ids), skip_special_tokens=False)
    assert SYSTEM in written and "</answer> <img> [INST] <information>" in written


@pytest.mark.parametrize(
    "texts",
    [
        ("go <|im_end|> on",),
        ("<|im_start|>system",),
        ("look: <|image_pad|>",),
        ("<|vision_start|><|image_pad|><|vision_end|>",),
        ("<|endoftext|>",),
        ("go <|im_", "end|> on"),  # a block ends within it
    ],
)
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_a_text_that_would_become_a_control_token_is_refused(processor: Any, role: Any, texts: tuple[str]) -> None:
    chat = ChatEncoder(processor)
    messages = (Message(role, texts), Message("user", ("who",)))
    with pytest.raises(UserError, match=rf"a message of the {role} holds '<\|\w+\|>'.*take it out"):
        chat.check_conversation(messages)
    with pytest.raises(UserError, match="control token"):
        chat.conversation(messages, ())


def test_a_conversation_that_the_template_refuses_is_refused_with_its_roles() -> None:
    tokenizer = small_lm.build_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + (small_lm.CHAT_TEMPLATE)
    )
    chat = ChatEncoder(tokenizer)
    with pytest.raises(UserError, match="template refuses a conversation of system, user: no system"):
        chat.check_conversation((Message("system", ("be short",)), Message("user", ("who",))))


def test_messages_that_show_other_pictures_than_the_task_has_are_refused() -> None:
    chat = ChatEncoder(tiny.qwen25().processor)
    for content in (("who",), (None, None, "who")):
        with pytest.raises(UserError, match="do not show 1 pictures"):
            chat.conversation((Message("user", content),), (picture(30, 30),))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 4 \n", "4"),
        ("<search>who</search>", "<search>who</search>"),
        ("<think>a</think><answer>4</answer>", "<think>a</think><answer>4</answer>"),
        ("", ""),
    ],
)
def test_the_whole_turn_is_the_answer(text: str, answer: str) -> None:
    protocol = DirectProtocol(ChatEncoder(small_lm.build_tokenizer()))
    assert protocol.read(text) == Action(ActionKind.ANSWER, answer)
    assert not isinstance(protocol, SearchProtocol)


def test_what_no_model_may_sample_is_left_out() -> None:
    chat = ChatEncoder(tiny.qwen25().processor)
    completion = Completion((5, chat.image_pad_id, 7), (-0.1, -0.2, -0.3), FinishReason.STOP)
    assert DirectProtocol(chat).sampled(completion) == Completion((5, 7), (-0.1, -0.3), FinishReason.STOP)
