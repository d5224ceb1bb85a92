import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.task import Task
from mmsearch_trl.data.dataset import drop_long_prompts, load_dataset_rows, row_to_task
from mmsearch_trl.data.rows import RowError, SkippedRows
from mmsearch_trl.data.tasks import read_tasks


Writer = Callable[..., Path]
NO_IMAGE = {"images": [{"bytes": b"broken", "path": None}]}


def test_a_row_holds_the_prompt_and_its_images_as_they_were_encoded(fvqa_mini: Path, tmp_path: Path) -> None:
    dataset = load_dataset_rows(fvqa_mini, cache_dir=tmp_path)
    source = pq.read_table(fvqa_mini).to_pylist()[0]
    assert dataset[0]["prompt"] == [{"role": "user", "content": "What is the country of origin of this food?"}]
    assert dataset[0]["images"] == [source["images"][0]["bytes"]]
    assert dataset[0]["image_sizes"] == [[384, 512]]


@pytest.mark.parametrize("resize", [False, True])
def test_a_dataset_row_is_the_same_task_as_its_file_row(fvqa_mini: Path, tmp_path: Path, resize: bool) -> None:
    dataset: Any = load_dataset_rows(fvqa_mini, cache_dir=tmp_path)
    for row, expected in zip(dataset, read_tasks(fvqa_mini, resize=resize), strict=True):
        task = row_to_task(row, resize=resize)
        assert (task.id, task.question, task.answers) == (expected.id, expected.question, expected.answers)
        assert [image.tobytes() for image in task.images] == [image.tobytes() for image in expected.images]


def test_files_of_both_kinds_are_joined_in_order(fvqa_mini: Path, write_jsonl: Writer, tmp_path: Path) -> None:
    plain = write_jsonl({"question": "What?", "image": "box.png", "answers": ["a box"], "level": 3})
    dataset = load_dataset_rows([plain, fvqa_mini], cache_dir=tmp_path / "cache")
    assert dataset["id"][:2] == ["plain-0", "fvqa_mini-0"]
    assert dict(row_to_task(dataset[0]).extra) == {"level": 3}
    assert row_to_task(dataset[0]).images[0].size == (30, 20)


def test_the_dataset_is_mapped_from_disk_and_written_once(fvqa_mini: Path, tmp_path: Path) -> None:
    first = load_dataset_rows(fvqa_mini, cache_dir=tmp_path)
    (file,) = tmp_path.glob("*.arrow")
    written = file.stat().st_mtime_ns
    assert first.cache_files == [{"filename": str(file)}]
    assert load_dataset_rows(fvqa_mini, cache_dir=tmp_path).cache_files == first.cache_files
    assert file.stat().st_mtime_ns == written


def test_a_changed_image_of_a_plain_file_is_read_again(write_jsonl: Writer, tmp_path: Path, png: bytes) -> None:
    path = write_jsonl({"question": "What?", "image": "box.png", "answers": ["a box"]})
    load_dataset_rows(path, cache_dir=tmp_path / "cache")
    (tmp_path / "box.png").write_bytes(b"broken")
    os.utime(tmp_path / "box.png", (1, 1))
    with pytest.raises(RowError, match=r"line 1: unreadable image"):
        load_dataset_rows(path, cache_dir=tmp_path / "cache")


def test_a_bad_row_stops_the_loading_and_leaves_no_file(write_parquet: Writer, tmp_path: Path) -> None:
    with pytest.raises(RowError, match=r"made\.parquet, row 1 \(counted from 0\): unreadable image"):
        load_dataset_rows(write_parquet({}, NO_IMAGE), cache_dir=tmp_path / "cache")
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} <= {".lock"}


def test_skipped_rows_are_reported_the_second_time_too(write_parquet: Writer, tmp_path: Path) -> None:
    path = write_parquet({}, NO_IMAGE, {})
    for _ in range(2):
        skipped = SkippedRows()
        dataset = load_dataset_rows(path, on_error="skip", cache_dir=tmp_path / "cache", skipped=skipped)
        assert dataset["id"][:] == ["made-0", "made-2"]
        assert [error.place for error in skipped.errors] == ["row 1 (counted from 0)"]


def test_no_row_left_is_an_error(write_parquet: Writer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no usable row \(1 bad"):
        load_dataset_rows(write_parquet(NO_IMAGE), on_error="skip", cache_dir=tmp_path / "cache")


def test_long_prompts_are_dropped_by_a_count_that_sees_the_image_sizes(
    fvqa_mini: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def count(task: Task) -> int:
        return len(task.question.split()) + task.images[0].width * task.images[0].height // 784

    dataset = load_dataset_rows(fvqa_mini, cache_dir=tmp_path)
    lengths = [count(task) for task in read_tasks(fvqa_mini)]
    bound = sorted(lengths)[2]
    with caplog.at_level(logging.WARNING):
        kept = drop_long_prompts(dataset, count, bound)
    assert kept["id"][:] == [f"fvqa_mini-{number}" for number, length in enumerate(lengths) if length <= bound]
    assert f"dropped {5 - len(kept)} of 5 rows" in caplog.text
    with pytest.raises(UserError, match="all 5 prompts"):
        drop_long_prompts(dataset, count, 1)


@pytest.mark.parametrize(
    ("answers", "texts"), [("Titanic", ("Titanic",)), (["a box", "box"], ("a box", "box")), (7, ("7",))]
)
def test_answers_of_a_data_set_of_ones_own_have_any_shape(
    write_jsonl: Writer, tmp_path: Path, answers: Any, texts: tuple[str, ...]
) -> None:
    rows: Any = load_dataset_rows(write_jsonl({"question": "?", "answers": "x"}), cache_dir=tmp_path / "cache")
    assert row_to_task(rows[0] | {"answers": answers}).answers == texts
