"""Conversations as demonstrations: the tokens are the template's own, and only what the assistant says is learned."""

from typing import Any

import pytest
import small_lm
import tiny
from PIL import Image

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.message import Message
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.trainer.conversations import answered_conversation
from mmsearch_trl.trainer.demonstrations import collate


SYSTEM = Message("system", ("think in <think></think>",))
ASKED = Message("user", ("who founded it?",))
SAID = Message("assistant", ("<think>it is new</think>", "<answer>nobody</answer>"))
AGAIN = Message("user", ("are you sure?",))
SURE = Message("assistant", ("<answer>yes</answer>",))


def demonstrated(chat: ChatEncoder, *messages: Message, images: tuple[Image.Image, ...] = ()) -> Trajectory:
    return answered_conversation(Task(id="1", question="?", images=images, messages=messages), chat)


def whole(chat: ChatEncoder, messages: tuple[Message, ...]) -> list[int]:
    """What the template makes of the conversation, up to the end of its last turn."""
    written: Any = [{"role": message.role, "content": message.text} for message in messages]
    text = chat.tokenizer.apply_chat_template(written, tokenize=False).removesuffix("\n")
    return chat.tokenizer(text, add_special_tokens=False)["input_ids"]


def learned(chat: ChatEncoder, trajectory: Trajectory) -> list[str]:
    """The stretches of a conversation that are in the loss, as text."""
    labels = collate([trajectory], chat, chat.tokenizer.pad_token_id)["labels"][0].tolist()
    text = "".join("\0" if label == -100 else chat.tokenizer.decode([label]) for label in labels)
    return [stretch for stretch in text.split("\0") if stretch]


@pytest.mark.parametrize("messages", [(ASKED, SAID), (SYSTEM, ASKED, SAID), (SYSTEM, ASKED, SAID, AGAIN, SURE)])
def test_each_turn_of_the_assistant_is_learned_with_its_end_and_nothing_else(messages: tuple[Message, ...]) -> None:
    chat = ChatEncoder(small_lm.build_tokenizer())
    trajectory = demonstrated(chat, *messages)
    assert trajectory.token_ids == whole(chat, messages)
    said = [message.text for message in messages if message.role == "assistant"]
    assert learned(chat, trajectory) == [f"{text}<|im_end|>" for text in said]
    assert [turn.text for turn in trajectory.turns] == said and not trajectory.has_tools


def test_an_earlier_turn_that_the_template_changes_is_only_read() -> None:
    tokenizer = small_lm.build_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['role'] == 'assistant' and not loop.last %}{{ message['content'].split('</think>')[-1] }}"
        "{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    chat = ChatEncoder(tokenizer)
    trajectory = demonstrated(chat, ASKED, SAID, AGAIN, SURE)
    assert learned(chat, trajectory) == ["<answer>yes</answer><|im_end|>"]
    assert trajectory.token_ids == whole(chat, (ASKED, SAID, AGAIN, SURE))
    assert "it is new" not in chat.decode(trajectory.prompt_ids)
    # Without a thought to take out, the turn stands as it was said.
    assert len(learned(chat, demonstrated(chat, ASKED, SURE, AGAIN, SURE))) == 2


def test_pictures_stay_in_the_message_that_shows_them() -> None:
    chat = ChatEncoder(tiny.qwen25().processor)
    images = tuple(Image.new("RGB", (30 + 20 * i, 50)) for i in range(3))
    shown = Message("user", ("this", None, "or", None)), SAID, Message("user", (None, "this?")), SURE
    trajectory = demonstrated(chat, *shown, images=images)
    assert (len(trajectory.prompt_images), len(trajectory.turns[0].reply_images)) == (2, 1)
    assert trajectory.turns[0].reply[-1] == "this?"
    batch = collate([trajectory, demonstrated(chat, ASKED, SAID)], chat, chat.tokenizer.pad_token_id)
    pads = (batch["input_ids"] == chat.image_pad_id).sum().item()
    assert pads == sum(image.num_tokens for image in trajectory.images) > 0
    assert len(batch["image_grid_thw"]) == 3
    assert not (batch["labels"] == chat.image_pad_id).any()
    prompt = chat.conversation(shown[:3], images)
    assert (*trajectory.prompt_ids, *trajectory.turns[0].token_ids, *trajectory.turns[0].reply_ids) == prompt.token_ids


@pytest.mark.parametrize("messages", [(SAID,), (SAID, AGAIN), (ASKED,), (SAID, AGAIN, SURE), ()])
def test_a_conversation_without_an_answer_to_something_is_refused(messages: tuple[Message, ...]) -> None:
    with pytest.raises(UserError, match="begins with another's message and ends with the assistant's"):
        demonstrated(ChatEncoder(small_lm.build_tokenizer()), *messages)
