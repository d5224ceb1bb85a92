"""Published layouts are read as they are; a recipe names the columns of all others."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.task import Task
from mmsearch_trl.data.columns import Columns
from mmsearch_trl.data.dataset import load_dataset_rows, row_to_task
from mmsearch_trl.data.reading import Reading
from mmsearch_trl.data.rows import RowError
from mmsearch_trl.data.tasks import read_tasks


Writer = Callable[..., Path]
IMAGES = datasets.List(datasets.Image())
TEXT = datasets.Value("string")
PICTURE = Image.new("RGB", (30, 20), (10, 20, 30))


def saved(folder: Path, rows: list[dict[str, Any]], **types: Any) -> Path:
    """Rows as a data set of the Hub keeps them."""
    features = datasets.Features({key: types.get(key, TEXT) for key in rows[0]})
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def only(source: Path, reading: Reading | None = None) -> Task:
    (task,) = read_tasks(source, reading=reading or Reading())
    return task


def test_easyr1_and_geometry3k(tmp_path: Path) -> None:
    row = {"images": [PICTURE, PICTURE], "problem": "<image><image>Find $x$.", "answer": "3"}
    task = only(saved(tmp_path, [row], images=IMAGES))
    assert (task.question, task.answers, len(task.images)) == ("Find $x$.", ("3",), 2)
    assert task.images[0].getpixel((0, 0)) == (10, 20, 30)


def test_r1_v(tmp_path: Path) -> None:
    row = {"image": PICTURE, "problem": "How many?", "solution": "<answer> 3 </answer>"}
    task = only(saved(tmp_path, [row], image=datasets.Image()))
    assert (task.question, task.answers, len(task.images), dict(task.extra)) == ("How many?", ("3",), 1, {})


def test_deepscaler_whose_solution_is_no_answer(write_jsonl: Writer) -> None:
    task = only(write_jsonl({"problem": "1 + 1?", "answer": "2", "solution": "It is $2$ <answer>5</answer>."}))
    assert (task.answers, task.extra["solution"]) == (("2",), "It is $2$ <answer>5</answer>.")


@pytest.mark.parametrize(
    "answer", ["4", "<answer>4</answer>", "<think>2 <answer>1</answer></think><answer> 4 </answer>"]
)
def test_vlm_r1_and_llava(write_jsonl: Writer, answer: str) -> None:
    turns = [{"from": "human", "value": "<image>How many?"}, {"from": "gpt", "value": answer}]
    for conversations in (turns, json.dumps(turns)):
        task = only(write_jsonl({"id": 1, "image": "box.png", "conversations": conversations}))
        assert (task.id, task.question, task.answers, len(task.images)) == ("1", "How many?", ("4",), 1)


def test_llava_with_a_column_of_answers(write_jsonl: Writer) -> None:
    turns = [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "Let me count: four."}]
    assert only(write_jsonl({"conversations": turns, "answer": "4"})).answers == ("4",)


@pytest.mark.parametrize("images", [None, [PICTURE]])
def test_verl(tmp_path: Path, images: list[Image.Image] | None) -> None:
    row = {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": "<image>" * bool(images) + "2 + 2? Answer in boxes."}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "4"},
        "extra_info": {"index": 7, "split": "train"},
    }
    types: dict[str, Any] = {
        "prompt": [{"role": TEXT, "content": TEXT}],
        "reward_model": {"style": TEXT, "ground_truth": TEXT},
        "extra_info": {"index": datasets.Value("int64"), "split": TEXT},
    }
    if images:
        row, types = row | {"images": images}, types | {"images": IMAGES}
    task = only(saved(tmp_path, [row], **types))
    assert (task.question, task.answers, task.data_source) == ("2 + 2? Answer in boxes.", ("4",), "openai/gsm8k")
    assert task.extra["index"] == 7 and len(task.images) == len(images or ())


@pytest.mark.parametrize("key", ["message", "messages"])
def test_message_rows_with_a_source(write_jsonl: Writer, key: str) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    task = only(write_jsonl({key: json.dumps(chat), "answer": "$2$", "datasource": "sums"}))
    assert (task.question, task.answers, task.data_source) == ("1 + 1?", ("$2$",), "sums")


def test_a_chat_may_end_with_its_answer(write_jsonl: Writer) -> None:
    chat = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": [{"type": "text", "text": "2"}]}]
    assert only(write_jsonl({"messages": chat})).answers == ("2",)


def test_a_file_may_mix_layouts(write_jsonl: Writer) -> None:
    path = write_jsonl(
        {"problem": "A?", "answer": "1"},
        {"problem": "B?", "solution": "<answer>2</answer>", "image": "box.png"},
        {"question": "C?", "golden_answers": ["3"]},
    )
    assert [(task.question, task.answers) for task in read_tasks(path)] == [
        ("A?", ("1",)),
        ("B?", ("2",)),
        ("C?", ("3",)),
    ]


def test_columns_are_named_by_the_recipe(write_jsonl: Writer, tmp_path: Path) -> None:
    row = {
        "q": "How many?",
        "gold": {"value": {"text": "3"}},
        "pics": ["box.png"],
        "from_set": "mine",
        "key": 7,
        "kind": "hard",
        "where": "https://example.org/a.png",
        "question": "not this",
        "answer": "nor this",
    }
    columns = Columns(
        prompt="q",
        answer="gold.value.text",
        images="pics",
        source="from_set",
        id="key",
        category="kind",
        image_url="where",
    )
    reading = Reading(columns=columns)
    rows: Any = load_dataset_rows(write_jsonl(row), reading=reading, cache_dir=tmp_path / "cache")
    for task in (only(write_jsonl(row), reading), row_to_task(rows[0])):
        assert (task.question, task.answers, task.data_source, task.id) == ("How many?", ("3",), "mine", "7")
        assert (task.category, task.image_url, len(task.images)) == ("hard", "https://example.org/a.png", 1)


def test_named_columns_leave_the_others_to_the_table(write_jsonl: Writer) -> None:
    path = write_jsonl({"problem": "<image>Find it.", "gold": "3", "images": ["box.png"]})
    task = only(path, Reading(columns=Columns(answer="gold")))
    assert (task.question, task.answers, len(task.images)) == ("Find it.", ("3",), 1)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        (Columns(answer="label"), r"columns\.answer names 'label', and the columns there are question, answer"),
        (Columns(images="pics"), r"columns\.images names 'pics'"),
        (Columns(source="set"), r"columns\.source names 'set'"),
        (Columns(messages="chat.turns"), r"columns\.messages names 'chat\.turns'"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_column_that_is_not_there_is_named_with_those_that_are(
    tmp_path: Path, suffix: str, columns: Columns, reason: str
) -> None:
    path = tmp_path / f"rows.{suffix}"
    path.write_text("question,answer\na,b\n" if suffix == "csv" else '{"question": "a", "answer": "b"}\n')
    with pytest.raises(UserError, match=reason):
        list(read_tasks(path, reading=Reading(columns=columns)))


def test_a_mistyped_column_is_named_where_the_recipe_names_others(write_jsonl: Writer) -> None:
    path = write_jsonl({"q": "a?", "answer": "b", "imgae": "box.png"})
    with pytest.raises(RowError, match="line 1: the key 'imgae' is not known; did you mean 'image'"):
        only(path, Reading(columns=Columns(prompt="q")))


def test_paths_start_where_the_recipe_says(write_jsonl: Writer, tmp_path: Path, png: bytes) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png)
    path = write_jsonl({"question": "a?", "answer": "b", "image": "a.png"})
    assert len(only(path, Reading(image_folder=tmp_path / "pictures")).images) == 1
    with pytest.raises(RowError, match="unreadable image"):
        only(path)


def test_a_list_may_be_written_as_a_text(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "a.png").write_bytes(png)
    (tmp_path / "rows.csv").write_text('question,answer,images\nwhat?,x,"[""a.png"", ""a.png""]"\n')
    assert len(only(tmp_path / "rows.csv").images) == 2


def test_other_columns_go_to_the_rewards_but_for_bytes(tmp_path: Path) -> None:
    row = {"question": "a?", "answer": "b", "level": 3, "preview": PICTURE, "seen": [b"x"]}
    source = saved(
        tmp_path,
        [row],
        level=datasets.Value("int64"),
        preview=datasets.Image(),
        seen=datasets.List(datasets.Value("binary")),
    )
    assert dict(only(source).extra) == {"level": 3}


@pytest.mark.parametrize("kind", ["path", "uri", "data", "base64", "bytes", "struct"])
def test_a_picture_has_any_form(tmp_path: Path, png: bytes, kind: str) -> None:
    (tmp_path / "a b.png").write_bytes(png)
    encoded = base64.b64encode(png).decode()
    forms: dict[str, Any] = {
        "path": "a b.png",
        "uri": (tmp_path / "a b.png").as_uri(),
        "data": f"data:image/png;base64,{encoded}",
        "base64": encoded,
        "bytes": png,
        "struct": {"bytes": None, "path": str(tmp_path / "a b.png")},
    }
    row = {"problem": "?a", "answer": "x", "image": forms[kind]}
    types = {"bytes": datasets.Value("binary"), "struct": {"bytes": datasets.Value("binary"), "path": TEXT}}
    source = saved(tmp_path, [row], image=types.get(kind, TEXT))
    (source / "a b.png").write_bytes(png)
    rows: Any = load_dataset_rows(source, cache_dir=tmp_path / "cache")
    assert rows[0]["images"] == [png]
    buffer = io.BytesIO()
    row_to_task(rows[0]).images[0].save(buffer, format="PNG")
    assert Image.open(buffer).size == (30, 20)
