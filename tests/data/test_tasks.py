import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmsearch_trl.core.errors import UserError
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
    with pytest.raises(UserError, match=r"made\.parquet: column reward_model is missing; columns present: prompt, im"):
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
    path = write_jsonl({"question": "?", "answers": ["!"]})
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
        (json.dumps({"question": "?", "answers": 3}), "the ground truth must be a text or a list of texts, got int"),
        (json.dumps({"question": "?", "answers": {"x": "y"}}), "a text or a list of texts, got dict"),
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
    path = write_jsonl({"question": "?", "answers": ["!"]}, line)
    with pytest.raises(RowError, match=rf"plain\.jsonl, line 2: .*{reason}"):
        list(read_tasks(path))


def test_a_file_of_another_kind_names_the_keys_it_has(write_jsonl: Writer) -> None:
    with pytest.raises(UserError, match=r"no line has the key answers; keys present: gold, question"):
        list(read_tasks(write_jsonl({"question": "?", "gold": "x"}), on_error="skip"))


@pytest.mark.parametrize(("name", "reason"), [("gone.parquet", "not found"), ("a.csv", r"expected a \.parquet")])
def test_a_missing_or_unknown_file_is_an_error(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(UserError, match=reason):
        next(read_tasks(tmp_path / name))


def test_a_file_that_is_no_parquet_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match=r"a\.parquet: not a readable parquet file"):
        list(read_tasks(tmp_path / "a.parquet"))
