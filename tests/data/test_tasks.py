import base64
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.dataset import load_dataset_rows
from mmsearch_trl.data.rows import RowError, SkippedRows
from mmsearch_trl.data.tasks import read_tasks


Writer = Callable[..., Path]


def truth(answer: Any, candidates: str | None = "[]") -> dict[str, Any]:
    return {"reward_model": {"ground_truth": answer, "candidate_answers": candidates, "style": "rule"}}


def image(data: bytes) -> dict[str, Any]:
    return {"images": [{"bytes": data, "path": None}]}


def test_the_released_rows_load_without_id_and_category(fvqa_mini: Path) -> None:
    tasks = list(read_tasks(fvqa_mini))
    assert [task.id for task in tasks] == [f"fvqa_mini-{number}" for number in range(5)]
    assert tasks[0].question == "What is the country of origin of this food?"
    assert tasks[0].answers[:2] == ("Spain", "Kingdom of Spain")
    assert "🇪🇸" in tasks[0].answers
    assert {task.category for task in tasks} == {None}
    assert {(len(task.images), task.images[0].mode) for task in tasks} == {(1, "RGB")}


def test_images_keep_their_size_unless_resizing_is_asked_for(fvqa_mini: Path) -> None:
    assert next(read_tasks(fvqa_mini)).images[0].size == (384, 512)
    assert next(read_tasks(fvqa_mini, resize=True)).images[0].size == (443, 591)


def test_id_category_url_and_extra_columns_are_carried(write_parquet: Writer) -> None:
    cells = {
        "data_id": "fvqa_train_7",
        "category": "search_free",
        "image_urls": "http://example.org/a.png",
        "extra_info": {"note": "kept"},
    }
    (task,) = read_tasks(write_parquet(cells))
    assert (task.id, task.category, task.image_url) == ("fvqa_train_7", "search_free", "http://example.org/a.png")
    assert task.extra == {"note": "kept"}


def test_extra_info_need_not_be_a_mapping(write_parquet: Writer) -> None:
    (task,) = read_tasks(write_parquet({"extra_info": "kept"}))
    assert task.extra == {"extra_info": "kept"}


def test_image_urls_may_be_a_list(write_parquet: Writer) -> None:
    (task,) = read_tasks(write_parquet({"image_urls": ["http://example.org/a.png"]}))
    assert task.image_url == "http://example.org/a.png"


def test_image_paths_in_a_parquet_file_start_at_its_folder(write_parquet: Writer, tmp_path: Path, png: bytes) -> None:
    (tmp_path / "box.png").write_bytes(png)
    (task,) = read_tasks(write_parquet({"images": [{"bytes": None, "path": "box.png"}]}))
    assert task.images[0].size == (30, 20)


def test_a_missing_column_is_named_with_the_file_and_the_columns_present(write_parquet: Writer) -> None:
    path = write_parquet({}, without=("reward_model",))
    with pytest.raises(
        UserError, match=r"made\.parquet: nothing holds the answers of a row: its columns are prompt, im"
    ):
        list(read_tasks(path))


BAD_ROWS = [
    (image(b"not an image"), "unreadable image"),
    ({"images": []}, "no image"),
    (truth(""), "ground truth is empty"),
    (truth("x", "no json"), "not a JSON list"),
    ({"prompt": [{"content": " ", "role": "user"}]}, "question"),
    ({"prompt": []}, "question"),
    ({"reward_model": None}, "ground truth is empty"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_ROWS)
def test_a_bad_row_is_an_error_with_file_and_row_number(write_parquet: Writer, bad: dict, reason: str) -> None:
    path = write_parquet({}, {}, bad, {})
    with pytest.raises(RowError, match=rf"made\.parquet, row 2 \(counted from 0\): .*{reason}"):
        list(read_tasks(path))


@pytest.mark.parametrize(("bad", "reason"), BAD_ROWS)
def test_a_bad_row_is_skipped_and_counted_if_asked(
    write_parquet: Writer, bad: dict, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    skipped = SkippedRows()
    with caplog.at_level(logging.WARNING):
        tasks = list(read_tasks(write_parquet({}, {}, bad, {}), on_error="skip", skipped=skipped))
    assert [task.id for task in tasks] == ["made-0", "made-1", "made-3"]
    assert len(skipped) == 1
    assert reason in skipped.errors[0].reason
    assert "skipped 1 bad rows, kept 3" in caplog.text


def test_a_truncated_image_is_unreadable(write_parquet: Writer, png: bytes) -> None:
    with pytest.raises(RowError, match="row 0"):
        list(read_tasks(write_parquet(image(png[:-30]))))


def test_rows_before_a_bad_one_are_yielded_first(write_parquet: Writer) -> None:
    tasks = read_tasks(write_parquet({}, truth("")))
    assert next(tasks).id == "made-0"
    with pytest.raises(RowError):
        next(tasks)


def test_plain_lines_need_a_question_and_answers_only(write_jsonl: Writer) -> None:
    path = write_jsonl(
        {"question": "What is it?", "image": "box.png", "answers": ["a box"]},
        "",
        {"id": "two", "question": "1 + 1?", "answers": "2", "level": 3, "category": "search_free"},
    )
    first, second = read_tasks(path)
    assert (first.id, first.images[0].size, first.data_source) == ("plain-0", (30, 20), "plain")
    assert (second.id, second.images, second.answers) == ("two", (), ("2",))
    assert (second.category, second.extra) == ("search_free", {"level": 3})


def test_a_folder_stands_for_its_jsonl_file(write_jsonl: Writer) -> None:
    path = write_jsonl({"question": "?", "answers": ["yes"]})
    assert [task.id for task in read_tasks(path.parent)] == ["plain-0"]
    (path.parent / "more.jsonl").write_text("")
    with pytest.raises(UserError, match=r"found more\.jsonl, plain\.jsonl"):
        list(read_tasks(path.parent))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting"),
        ("[1]", "expected a JSON object"),
        (json.dumps({"answers": ["x"]}), "key 'question' is missing; keys present: answers"),
        (json.dumps({"question": "?", "answers": []}), "ground truth is empty"),
        (json.dumps({"question": "?", "answers": ["x"], "image": "gone.png"}), "unreadable image"),
        (json.dumps({"question": 3, "answers": ["x"]}), "not empty"),
        (json.dumps({"question": "?", "answers": True}), "the ground truth must be a text, a number, .* got True"),
        (json.dumps({"question": "?", "answers": {"x": "y"}}), "an object with the key x"),
        (json.dumps({"question": "?", "answers": "A"}), "the answer 'A' cannot be scored"),
        (json.dumps({"question": "?", "answers": 1, "choices": ["x", "y"]}), "the number of one of 2 options"),
        (json.dumps({"question": "?", "answers": ["x"], "image": 3}), "no image: .* got int"),
        (json.dumps({"question": "?", "answers": ["x"], "image": "a\0.png"}), "no image"),
        (json.dumps({"question": "?", "answers": ["x"], "category": ["a"]}), "'category' must be a text, got list"),
        (
            json.dumps({"question": "?", "answers": ["x"], "data_source": True}),
            "'data_source' must be a text, got bool",
        ),
        (json.dumps({"question": "\ud800?", "answers": ["x"]}), "not JSON: .*surrogates"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_line_is_an_error_with_its_number(write_jsonl: Writer, line: str, reason: str) -> None:
    path = write_jsonl({"question": "?", "answers": ["yes"]}, line)
    with pytest.raises(RowError, match=rf"plain\.jsonl, line 2: .*{reason}"):
        list(read_tasks(path))


def test_a_file_of_another_kind_names_the_keys_it_has(write_jsonl: Writer) -> None:
    with pytest.raises(UserError, match=r"nothing holds the answers of a row: its columns are question, gold"):
        list(read_tasks(write_jsonl({"question": "?", "gold": "x"}), on_error="skip"))


@pytest.mark.parametrize(
    ("name", "reason"), [("gone.parquet", "not found"), ("a.xls", r"expected a file \.jsonl, \.json, ")]
)
def test_a_missing_or_unknown_file_is_an_error(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "a.xls").write_text("a,b")
    with pytest.raises(UserError, match=reason):
        next(read_tasks(tmp_path / name))


def test_a_file_that_is_no_parquet_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match=r"a\.parquet: not a readable parquet file"):
        list(read_tasks(tmp_path / "a.parquet"))


ANSWERED = {"question": "What is it?", "answers": "a box"}


@pytest.mark.parametrize(
    ("prompt", "extra"),
    [
        ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}], None),
        ([{"role": "user", "content": "Hello"}, {"role": "user", "content": "What is it?"}], {"split": "train"}),
        (
            [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]}],
            None,
        ),
        ([{"role": "user", "content": "<image>\nWhat is it?"}], None),
        ("<image>What is it?", None),
        ([{"role": "user", "content": "Think first. What is it?"}], {"question": "What is it?"}),
        ([{"role": "user", "content": "Think first."}], {"question": "<image>What is it?"}),
    ],
)
def test_the_question_of_a_chat_is_bare(write_parquet: Writer, prompt: Any, extra: Any) -> None:
    (task,) = read_tasks(write_parquet({"prompt": prompt} | ({} if extra is None else {"extra_info": extra})))
    assert task.question == "What is it?"


def test_a_column_question_is_preferred(write_parquet: Writer) -> None:
    (task,) = read_tasks(write_parquet({"question": "What is it?", "prompt": [{"role": "user", "content": "Think."}]}))
    assert task.question == "What is it?"


@pytest.mark.parametrize(
    ("changes", "answers"),
    [
        ({"answers": 1969}, ("1969",)),
        ({"answers": [1969, "x"]}, ("1969", "x")),
        ({"answers": {"value": "Ann Lee", "aliases": ["A. Lee"]}}, ("Ann Lee", "A. Lee")),
        ({"answers": '["Ann Lee", "A. Lee"]'}, ("Ann Lee", "A. Lee")),
        ({"answers": None, "answer": ["Ann Lee"]}, ("Ann Lee",)),
        ({"answer": "Ann Lee", "answer_aliases": ["A. Lee"]}, ("Ann Lee", "A. Lee")),
        ({"answers": "Ann Lee", "candidate_answers": '["A. Lee"]', "aliases": [7]}, ("Ann Lee", "7", "A. Lee")),
        ({"answers": "", "golden_answers": [0]}, ("0",)),
        ({"answers": "B", "choices": ["x", "y"]}, ("y",)),
        ({"answers": "A", "A": "x", "B": "y"}, ("x",)),
    ],
)
def test_the_answers_of_a_line_have_any_shape(
    write_jsonl: Writer, changes: dict[str, Any], answers: tuple[str, ...]
) -> None:
    (task,) = read_tasks(write_jsonl({"question": "Who?"} | changes))
    assert task.answers == answers and task.extra.keys() <= {"choices", "A", "B"}


@pytest.mark.parametrize(
    ("answer", "answers"),
    [(1969, ("1969", "box")), (["a box", "a case"], ("a box", "a case", "box")), ({"target": ["x"]}, ("x", "box"))],
)
def test_the_answers_of_a_cell_have_any_shape(write_parquet: Writer, answer: Any, answers: tuple[str, ...]) -> None:
    (task,) = read_tasks(write_parquet(truth(answer, '["box"]')))
    assert task.answers == answers


def test_an_image_may_stand_in_the_line_itself(write_jsonl: Writer, png: bytes) -> None:
    text = base64.b64encode(png).decode()
    cells = [text, f"data:image/png;base64,{text}", {"bytes": text}, [text, "box.png"]]
    tasks = read_tasks(write_jsonl(*(ANSWERED | {"image": cell} for cell in cells)))
    assert [[image.size for image in task.images] for task in tasks] == [[(30, 20)]] * 3 + [[(30, 20)] * 2]


@pytest.mark.parametrize("key", ["images", "img", "image_path"])
def test_an_image_under_another_name_is_not_lost(write_jsonl: Writer, key: str) -> None:
    (task,) = read_tasks(write_jsonl(ANSWERED | {key: "box.png"}))
    assert task.images[0].size == (30, 20) and not task.extra


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"picture": "box.png"}, "'picture' seems to name one"),
        ({"imgae": "box.png"}, "the key 'imgae' is not known; did you mean 'image'"),
        ({"Image": "box.png"}, "the key 'Image' is not known; did you mean 'image'"),
        ({"image": None, "dataSource": "x"}, "did you mean 'data_source'"),
        ({"catgory": "x"}, "did you mean 'category'"),
        ({"ID": 3}, "did you mean 'id'"),
        ({"image_url": "https://example.org/a.png"}, "'image_url' seems to name one"),
        ({"question": "<image>\nWho?"}, "the mark <image> of an image"),
        ({"image": "http://127.0.0.1/a.png"}, "unreadable image: the address of image 1: "),
        ({"image": "Qk" * 9000}, "a text of 18000 characters"),
        ({"image": "x/" * 1500 + "a.png"}, "unreadable image: .*cannot be read"),
        ({"image": "box.png", "image_url": [{"url": "x"}]}, "'image_url' must be a text, got dict"),
        ({"id": ["a"]}, "'id' must be a text, got list"),
        ({"id": True}, "'id' must be a text, got bool"),
        ({"category": {"a": "x" * 9000}}, "'category' must be a text, got dict"),
    ],
)
def test_what_would_be_lost_or_cannot_be_read_is_an_error_of_its_line(
    write_jsonl: Writer, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    path = write_jsonl(ANSWERED, ANSWERED | changes, ANSWERED)
    with pytest.raises(RowError, match=rf"plain\.jsonl, line 2: .*{reason}") as raised:
        load_dataset_rows(path, cache_dir=tmp_path / "cache")
    assert len(str(raised.value)) < 1000
    skipped = SkippedRows()
    rows = load_dataset_rows(path, on_error="skip", cache_dir=tmp_path / "cache", skipped=skipped)
    assert (len(rows), len(skipped)) == (2, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"question_id": 7, "answer_type": "name", "image_id": 3, "image": "box.png"},
        {"photographer": "Ann", "categories": 3, "idx": 4, "answer_id": 5},
    ],
)
def test_other_keys_go_to_the_rewards(write_jsonl: Writer, changes: dict[str, Any]) -> None:
    (task,) = read_tasks(write_jsonl(ANSWERED | changes))
    assert dict(task.extra) == {key: value for key, value in changes.items() if key != "image"}


def test_an_empty_cell_is_a_missing_one(write_jsonl: Writer) -> None:
    empty = {"id": " ", "image": None, "category": float("nan"), "data_source": "", "image_url": [None]}
    first, second = read_tasks(write_jsonl(ANSWERED | empty, ANSWERED | {"id": 7.0, "image_urls": None}))
    assert (first.id, first.category, first.data_source, first.image_url) == ("plain-0", None, "plain", None)
    assert second.id == "7"


def test_the_address_of_an_image_may_be_a_list(write_jsonl: Writer) -> None:
    rows = ({"image_url": ["", "u"]}, {"image_urls": ["u"]})
    tasks = read_tasks(write_jsonl(*(ANSWERED | {"image": "box.png"} | row for row in rows)))
    assert [task.image_url for task in tasks] == ["u", "u"]


def test_marks_of_order_and_line_ends_of_windows_are_no_text(write_jsonl: Writer) -> None:
    path = write_jsonl(ANSWERED, ANSWERED | {"id": "two"})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert [task.id for task in read_tasks(path)] == ["plain-0", "two"]


def test_text_that_is_no_utf8_is_an_error_of_its_line(write_jsonl: Writer) -> None:
    path = write_jsonl(ANSWERED, ANSWERED | {"question": "caf\u00e9?"}, ANSWERED)
    path.write_bytes(path.read_bytes().replace(b"caf\\u00e9", b"caf\xe9"))
    skipped = SkippedRows()
    assert len(list(read_tasks(path, on_error="skip", skipped=skipped))) == 2
    assert "not UTF-8 text" in skipped.errors[0].reason


def test_a_cell_of_parquet_that_is_no_text_is_an_error_of_its_row(tmp_path: Path, write_parquet: Writer) -> None:
    table = pq.read_table(write_parquet({}, {}, {}))
    pq.write_table(table.append_column("data_id", _unchecked(b"a", b"\xff", b"c")), tmp_path / "broken.parquet")
    skipped = SkippedRows()
    tasks = list(read_tasks(tmp_path / "broken.parquet", on_error="skip", skipped=skipped))
    assert [task.id for task in tasks] == ["a", "c"]
    assert skipped.errors[0].place.startswith("row 1") and "not UTF-8" in skipped.errors[0].reason


def _unchecked(*texts: bytes) -> pa.Array:
    """Texts as a writer leaves them that does not check them."""
    binary = pa.array(texts, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(texts), binary.buffers())


def test_half_a_surrogate_in_candidates_is_an_error_of_its_row(write_parquet: Writer, tmp_path: Path) -> None:
    path = write_parquet({}, truth("x", '["\\ud83c"]'))
    with pytest.raises(RowError, match=r"row 1 .*surrogate"):
        load_dataset_rows(path, cache_dir=tmp_path)


def test_a_line_of_ten_thousand_keys_is_told_briefly(write_jsonl: Writer) -> None:
    path = write_jsonl({f"key{number}": number for number in range(10_000)})
    for on_error in ("raise", "skip"):
        with pytest.raises(UserError) as raised:
            list(read_tasks(path, on_error=on_error))
        assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("column", ["catgory", "image-urls", "dataId", "extra_infos"])
def test_a_mistyped_column_is_named(write_parquet: Writer, column: str) -> None:
    with pytest.raises(UserError, match=rf"made\.parquet: the column '{column}' is not known; did you mean"):
        list(read_tasks(write_parquet({column: "x"})))


def test_columns_have_other_names_and_more_columns_are_nobodys_mistake(write_parquet: Writer) -> None:
    (task,) = read_tasks(write_parquet({"id": 7, "image_url": "u", "ability": "vqa", "agent_name": "x"}))
    assert (task.id, task.image_url) == ("7", "u")


def chat(*blocks: Any) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": list(blocks)}]


def test_a_chat_may_stand_for_the_question_of_a_line(write_jsonl: Writer, png: bytes) -> None:
    uri = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    text = {"type": "text", "text": "What is it?"}
    rows: list[dict[str, Any]] = [
        {"prompt": chat(text), "image": "box.png"},
        {"prompt": chat({"type": "image", "image": "box.png"}, text)},
        {"prompt": chat({"type": "image_url", "image_url": {"url": uri}}, text)},
        {"prompt": json.dumps(chat({"type": "image"}, text)), "images": ["box.png"], "question": None},
        {"prompt": "<image>What is it?", "img": "box.png"},
    ]
    tasks = list(read_tasks(write_jsonl(*(row | {"answer": "a box"} for row in rows))))
    assert {(task.question, len(task.images), task.answers) for task in tasks} == {("What is it?", 1, ("a box",))}
    assert len(tasks) == len(rows)


def test_a_question_is_preferred_to_a_chat(write_jsonl: Writer) -> None:
    (task,) = read_tasks(write_jsonl(ANSWERED | {"prompt": chat("Think first. What is it?")}))
    assert task.question == "What is it?"
