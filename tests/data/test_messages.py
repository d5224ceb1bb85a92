"""Rows of messages: every shape in which people have them, each picture at its place, texts to the letter."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.message import Message
from mmsearch_trl.core.task import Task
from mmsearch_trl.data.dataset import load_dataset_rows, row_to_task
from mmsearch_trl.data.messages import ConversationRules
from mmsearch_trl.data.pixels import ModelPixels
from mmsearch_trl.data.reading import Reading
from mmsearch_trl.data.rows import RowError, SkippedRows
from mmsearch_trl.data.tasks import read_tasks


def refuse_controls(messages: Any) -> None:
    if any("<|im_end|>" in message.text for message in messages):
        raise UserError("a control token")


MODEL = ModelPixels(784, 12_845_056, 28)
READING = Reading(rules=ConversationRules(check=refuse_controls, fingerprint="a"), model_pixels=MODEL)
USER = {"role": "user", "content": "What is it?"}
Write = Callable[..., Path]


def chat(*blocks: Any, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": list(blocks)}]


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def read(write: Write, tmp_path: Path, cells: dict[str, Any]) -> Task:
    """The task of a line, as it is read and as it comes back from the Arrow file."""
    path = write({"answer": "a box"} | cells)
    (task,) = read_tasks(path, reading=READING)
    rows: Any = load_dataset_rows(path, cache_dir=tmp_path / "cache", reading=READING)
    again = row_to_task(rows[0])
    assert (again.messages, again.question, len(again.images)) == (task.messages, task.question, len(task.images))
    assert (
        [image.size for image in again.images]
        == [image.size for image in task.images]
        == [tuple(size) for size in rows[0]["image_sizes"]]
    )
    return task


@pytest.mark.parametrize("key", ["message", "messages", "prompt"])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_conversation_is_a_list_or_a_text_of_json(
    write_jsonl: Write, tmp_path: Path, key: str, as_json: bool
) -> None:
    system = {"role": "system", "content": "Think in <think></think>.\n"}
    said = [
        system,
        USER,
        {"role": "assistant", "content": [text("a "), text("cup")]},
        {"role": "user", "content": " Sure? "},
    ]
    task = read(
        write_jsonl, tmp_path, {key: json.dumps(said) if as_json else said, "question": "of LMM-R1", "level": 3}
    )
    assert task.messages == (
        Message("system", ("Think in <think></think>.\n",)),
        Message("user", ("What is it?",)),
        Message("assistant", ("a ", "cup")),
        Message("user", (" Sure? ",)),
    )
    assert task.question == "Sure?" and task.answers == ("a box",) and dict(task.extra) == {"level": 3}


def test_a_row_with_a_question_alone_is_one_message(write_jsonl: Write, tmp_path: Path) -> None:
    assert read(write_jsonl, tmp_path, {"question": "What is <b> it?"}).messages == (
        Message("user", ("What is <b> it?",)),
    )
    one = read(write_jsonl, tmp_path, {"question": "What?", "image": "box.png"})
    assert one.messages == (Message("user", (None, "What?")),) and len(one.images) == 1
    two = read(write_jsonl, tmp_path, {"question": "<image>left\n<image>right", "images": ["box.png", "box.png"]})
    assert two.messages == (Message("user", (None, "left\n", None, "right")),)
    assert two.question == "left\nright"


def encoded(png: bytes) -> str:
    return base64.b64encode(png).decode("ascii")


CELLS: dict[str, Callable[[Path, bytes], Any]] = {
    "a path": lambda folder, png: {"image": "box.png"},
    "an absolute path": lambda folder, png: {"image": str(folder / "box.png")},
    "a file address": lambda folder, png: {"image": f"file://{folder / 'box.png'}"},
    "a data address": lambda folder, png: {"image": f"data:image/png;base64,{encoded(png)}"},
    "base64": lambda folder, png: {"image": encoded(png)},
    "as OpenAI has it": lambda folder, png: {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{encoded(png)}", "detail": "low"},
    },
    "without a type": lambda folder, png: {"type": None, "image": "box.png"},
}


@pytest.mark.parametrize("kind", CELLS)
def test_a_block_names_its_picture(write_jsonl: Write, tmp_path: Path, png: bytes, kind: str) -> None:
    block = {"type": "image"} | CELLS[kind](tmp_path, png)
    task = read(write_jsonl, tmp_path, {"messages": chat(text("left:"), block, text("right:"), block, text("Which?"))})
    assert task.messages == (Message("user", ("left:", None, "right:", None, "Which?")),)
    assert [image.size for image in task.images] == [(30, 20)] * 2 and task.question == "left:right:Which?"


def test_blocks_and_marks_take_the_pictures_beside_the_messages_in_order(write_jsonl: Write, tmp_path: Path) -> None:
    Image.new("RGB", (40, 50)).save(tmp_path / "tall.png")
    images = {"images": ["tall.png", "box.png"]}
    blocks = [
        {"role": "user", "content": [{"type": "image"}, text("this?")]},
        {"role": "assistant", "content": "a cup"},
        {"role": "user", "content": "and <image>?"},
    ]
    task = read(write_jsonl, tmp_path, {"messages": blocks} | images)
    assert [message.content for message in task.messages] == [(None, "this?"), ("a cup",), ("and ", None, "?")]
    assert [image.size for image in task.images] == [(40, 50), (30, 20)]
    numbered = read(write_jsonl, tmp_path, {"prompt": "<image 1> and <image_2>?"} | images)
    assert numbered.messages == (Message("user", (None, " and ", None, "?")),)
    first = read(write_jsonl, tmp_path, {"messages": [{"role": "system", "content": "s"}, USER]} | images)
    assert [message.content for message in first.messages] == [("s",), (None, None, "What is it?")]


@pytest.mark.parametrize(
    ("bounds", "size"),
    [
        ({"min_pixels": 28 * 28 * 4}, (84, 56)),
        ({"max_pixels": 56 * 28}, (28, 28)),
        ({"min_pixels": 1, "max_pixels": 1e6}, (28, 28)),
        ({"min_pixels": None, "max_pixels": None}, (30, 20)),
    ],
)
def test_a_picture_is_brought_within_its_own_bounds(
    write_jsonl: Write, tmp_path: Path, bounds: dict[str, Any], size: tuple[int, int]
) -> None:
    task = read(
        write_jsonl, tmp_path, {"messages": chat({"type": "image", "image": "box.png"} | bounds, text("What?"))}
    )
    assert task.images[0].size == size
    assert not bounds.get("max_pixels") or size[0] * size[1] <= bounds["max_pixels"]
    assert not bounds.get("min_pixels") or size[0] * size[1] >= bounds["min_pixels"]


BAD: dict[str, tuple[Any, str]] = {
    "a picture that is not there": ({"messages": chat({"type": "image", "image": "/no/such.png"})}, "no/such.png"),
    "an unknown role": ({"messages": [{"role": "critic", "content": "x"}]}, "role 'critic'"),
    "no role": ({"messages": [{"content": "x"}]}, "role None"),
    "no content": ({"messages": [{"role": "user"}]}, "message 0: `content` must be"),
    "a block of another kind": (
        {"messages": chat({"type": "video", "video": "a.mp4"})},
        "neither a text nor an image",
    ),
    "a key of another library": (
        {"messages": chat({"type": "image", "image": "box.png", "resized_height": 28})},
        "the key 'resized_height'",
    ),
    "bounds that exclude each other": (
        {"messages": chat({"type": "image", "image": "box.png", "min_pixels": 9, "max_pixels": 4})},
        "min_pixels 9 is more than max_pixels 4",
    ),
    "a bound that is none": (
        {"messages": chat({"type": "image", "image": "box.png", "max_pixels": "many"})},
        "max_pixels must be a whole number",
    ),
    "a mark without a picture": ({"messages": [{"role": "user", "content": "<image>What?"}]}, "mark <image> has no"),
    "a pad without a picture": ({"prompt": "x <|image_pad|> y"}, "has no picture"),
    "a mark in a system message": ({"messages": [{"role": "system", "content": "<image>"}, USER]}, "has no picture"),
    "fewer places than pictures": (
        {"messages": [{"role": "user", "content": "<image>?"}], "images": ["box.png", "box.png"]},
        "places for 1 of the row's 2 pictures",
    ),
    "marks out of order": (
        {"prompt": "<image 2><image 1>?", "images": ["box.png", "box.png"]},
        "<image 2> stands where picture 1 is next",
    ),
    "pictures twice": (
        {"messages": chat({"type": "image", "image": "box.png"}, text("?")), "image": "box.png"},
        "pictures twice",
    ),
    "the assistant last": (
        {"messages": [USER, {"role": "assistant", "content": "x"}]},
        "the last message is the assistant's",
    ),
    "nothing asked": ({"messages": [{"role": "user", "content": " "}]}, "the last message is empty"),
    "no message": ({"messages": "[]"}, "no message"),
    "a control token": ({"messages": [{"role": "user", "content": "go <|im_end|>"}]}, "a control token"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_row_is_told_with_its_line_and_can_be_passed_over(
    write_jsonl: Write, tmp_path: Path, name: str
) -> None:
    cells, reason = BAD[name]
    path = write_jsonl({"messages": [USER], "answer": "a box"}, {"answer": "a box"} | cells)
    with pytest.raises(RowError, match=r"plain.jsonl, line 2: .*" + reason.replace("?", r"\?")):
        load_dataset_rows(path, cache_dir=tmp_path / "cache", reading=READING)
    for _ in range(2):  # read, and from the file that was written then
        skipped = SkippedRows()
        rows = load_dataset_rows(path, on_error="skip", cache_dir=tmp_path / "cache", reading=READING, skipped=skipped)
        assert (len(rows), [error.place for error in skipped.errors]) == (1, ["line 2"])


def test_rows_are_read_anew_for_a_model_that_refuses_other_texts(write_jsonl: Write, tmp_path: Path) -> None:
    path = write_jsonl({"messages": [{"role": "user", "content": "go <|im_end|>"}], "answer": "x"})
    other = replace(READING, rules=ConversationRules(check=lambda messages: None, fingerprint="b"))
    assert len(load_dataset_rows(path, cache_dir=tmp_path / "cache", reading=other)) == 1
    with pytest.raises(RowError):
        load_dataset_rows(path, cache_dir=tmp_path / "cache", reading=READING)


def test_without_the_rules_the_question_is_what_the_user_said_last(write_jsonl: Write, tmp_path: Path) -> None:
    said = [USER, {"role": "assistant", "content": "a cup"}, {"role": "user", "content": "Sure?"}]
    (task,) = read_tasks(write_jsonl({"message": json.dumps(said), "answer": "x"}))
    assert (task.question, task.messages) == ("Sure?", ())


def test_reward_functions_see_the_conversation_with_marks_for_pictures(write_jsonl: Write, tmp_path: Path) -> None:
    said = [{"role": "system", "content": "s"}, *chat({"type": "image", "image": "box.png"}, text("What?"))]
    path = write_jsonl({"messages": said, "answer": "x"})
    rows: Any = load_dataset_rows(path, cache_dir=tmp_path / "cache", reading=READING)
    assert rows[0]["prompt"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "<image>What?"}]


@pytest.mark.parametrize("images", [True, False])
def test_parquet_files_of_verl_keep_their_whole_prompt(tmp_path: Path, png: bytes, images: bool) -> None:
    row: dict[str, Any] = {
        "prompt": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "<image>What?" if images else "Who?"},
        ],
        "reward_model": {"ground_truth": "a box"} if images else {"ground_truth": {"target": ["a box"]}},
        "data_source": "made",
    } | ({"images": [{"bytes": png, "path": None}]} if images else {})
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    (task,) = read_tasks(tmp_path / "rows.parquet", reading=READING)
    last = (None, "What?") if images else ("Who?",)
    assert task.messages == (Message("system", ("s",)), Message("user", last))
    assert (len(task.images), task.answers) == (int(images), ("a box",))
