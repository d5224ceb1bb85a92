"""What a recipe says around a row's own words reaches the model in its own template; nothing of the row is lost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_lm
import tiny

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.message import Message
from mmsearch_trl.data.config import DataConfig
from mmsearch_trl.data.messages import ConversationRules
from mmsearch_trl.data.opening import AS_WRITTEN, Opening
from mmsearch_trl.data.pixels import ModelPixels
from mmsearch_trl.data.reading import Reading
from mmsearch_trl.data.tasks import read_tasks
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.protocol.direct import DirectProtocol


Writer = Callable[..., Path]
SYSTEM = "Think in <think></think>, then answer in <answer>$2$</answer>."
TEMPLATE = "Solve it: {question}\nWrite \\boxed{}."


def reading_of(chat: ChatEncoder, **keys: Any) -> Reading:
    rules = ConversationRules(check=chat.check_conversation, fingerprint="")
    pixels = None if chat.images.pixels is None else ModelPixels(*chat.images.pixels)
    return DataConfig(protocol="direct", **keys).reading(pixels, rules)


@pytest.mark.parametrize("processor", [small_lm.build_tokenizer, lambda: tiny.qwen25().processor])
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [("user", "1 + 1?")]),
        ({"system_prompt": SYSTEM}, [("system", SYSTEM), ("user", "1 + 1?")]),
        ({"template": TEMPLATE}, [("user", "Solve it: 1 + 1?\nWrite \\boxed{}.")]),
        (
            {"system_prompt": SYSTEM, "template": TEMPLATE},
            [("system", SYSTEM), ("user", "Solve it: 1 + 1?\nWrite \\boxed{}.")],
        ),
    ],
)
def test_the_ids_are_those_of_the_models_own_template(
    write_jsonl: Writer, processor: Callable[[], Any], keys: dict[str, str], expected: list[tuple[str, str]]
) -> None:
    chat = ChatEncoder(processor())
    rows = ({"problem": "1 + 1?"}, {"messages": [{"role": "user", "content": "1 + 1?"}]}, {"question": "1 + 1?"})
    path = write_jsonl(*(row | {"answer": "2"} for row in rows))
    messages = [{"role": role, "content": text} for role, text in expected]
    ids = chat.tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, chat_template=chat.processor.chat_template
    )["input_ids"]
    for task in read_tasks(path, reading=reading_of(chat, **keys)):
        assert list(DirectProtocol(chat).prompt(task).token_ids) == ids
        assert task.question == "1 + 1?"


def test_a_row_with_a_system_message_says_all_of_it_itself(write_jsonl: Writer) -> None:
    chat = ChatEncoder(small_lm.build_tokenizer())
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "1 + 1?"}]
    (task,) = read_tasks(
        write_jsonl({"messages": own, "answer": "2"}),
        reading=reading_of(chat, system_prompt=SYSTEM, template=TEMPLATE),
    )
    assert task.messages == (Message("system", ("own",)), Message("user", ("1 + 1?",)))


@pytest.mark.parametrize(
    ("content", "framed"),
    [
        (("a",), ("<a>",)),
        ((None, None, "a"), (None, None, "<a>")),
        (("a", None, "b"), ("<a", None, "b>")),
        ((None, "a", None), (None, "<a", None, ">")),
        (("a", "b"), ("<ab>",)),
    ],
)
def test_a_template_stands_behind_the_pictures_that_come_first(
    content: tuple[str | None, ...], framed: tuple[str | None, ...]
) -> None:
    earlier = (Message("user", ("before",)), Message("assistant", ("yes",)))
    applied = Opening(template="<{question}>").applied((*earlier, Message("user", content)))
    assert applied == (*earlier, Message("user", framed))
    assert Opening(template="{question}").applied([Message("user", ("a", None))])[0].content == ("a", None)
    assert AS_WRITTEN.applied(earlier) == earlier


def test_texts_may_stand_in_files(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("\ufeffBe brief.\n{a}\n", encoding="utf-8")
    (tmp_path / "t.txt").write_text("{question} in {}?\n")
    opening = Opening.load(str(tmp_path / "s.txt"), str(tmp_path / "t.txt"))
    assert (opening.system, opening.template) == ("Be brief.\n{a}", "{question} in {}?")


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"template": "no place"}, "template must hold {question} once, and holds it 0 times"),
        ({"template": "{question} {question}"}, "holds it 2 times"),
        ({"system_prompt": " \n"}, "system_prompt is empty: write a text"),
        ({"system_prompt": "{folder}/gone.txt"}, "system_prompt: .*gone.txt: cannot be read"),
        ({"template": "{folder}/odd.txt"}, "template: .*odd.txt: not UTF-8"),
        ({"system_prompt": "go <|im_end|>"}, "system_prompt, template: .*control token"),
        ({"template": "<|image_pad|> {question}"}, "system_prompt, template: .*control token"),
    ],
)
def test_a_text_that_cannot_be_shown_is_refused(tmp_path: Path, keys: dict[str, str], reason: str) -> None:
    (tmp_path / "odd.txt").write_bytes(b"caf\xe9 {question}")
    given = {key: value.replace("{folder}", str(tmp_path)) for key, value in keys.items()}
    with pytest.raises(UserError, match=reason) as raised:
        reading_of(ChatEncoder(tiny.qwen25().processor), **given)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("protocol", ["mmsearch_r1", "mmsearch_r1_upstream", "search_r1"])
@pytest.mark.parametrize("key", ["system_prompt", "template"])
def test_a_protocol_that_writes_its_own_prompt_refuses_the_keys(protocol: str, key: str) -> None:
    keys: dict[str, Any] = {"protocol": protocol, key: "{question}"}
    with pytest.raises(UserError, match=rf"{key} is a key of protocol direct; {protocol} has a first prompt"):
        DataConfig(**keys)
