"""Every kind of source gives the same rows, names its bad ones, and says in a line what is wrong with it."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from datasets import config

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.task import Task
from mmsearch_trl.data.dataset import load_dataset_rows, row_to_task
from mmsearch_trl.data.reading import Reading
from mmsearch_trl.data.rows import RowError, SkippedRows
from mmsearch_trl.data.sources import count_rows, data_name, find_source
from mmsearch_trl.data.tasks import read_tasks


ROWS = [
    {"id": "a", "question": "007?", "image": "box.png", "answer": "007"},
    {"id": "b", "question": 'Not "NA",\nbut?', "image": None, "answer": "NA"},
    {"id": "c", "question": "1 + 0", "image": None, "answer": "1.0"},
]
BAD = {"id": "bad", "question": "Who?", "image": "gone.png", "answer": "x"}


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows)
    if path.suffix in (".parquet", ".pq"):
        pq.write_table(table, path)
    elif path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)


def csv_text(rows: list[dict[str, Any]], delimiter: str) -> str:
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    quoted = (
        ['"{}"'.format(str(cell).replace('"', '""')) if cell is not None else "" for cell in line] for line in lines
    )
    return "\r\n".join(delimiter.join(line) for line in quoted)


def repository(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    """A folder as data sets on the Hub are laid out."""
    (folder / "data").mkdir(parents=True)
    for split, rows in splits.items():
        datasets.Dataset.from_list(rows).to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return folder


def _feather(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow.feather.write_feather(pa.Table.from_pylist(rows), str(path), compression="uncompressed")


def _saved(path: Path, rows: list[dict[str, Any]]) -> None:
    datasets.Dataset.from_list(rows).save_to_disk(str(path))


def _saved_splits(path: Path, rows: list[dict[str, Any]]) -> None:
    parts = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows[:1])}
    )
    parts.save_to_disk(str(path))


def _tables(path: Path, rows: list[dict[str, Any]]) -> None:
    for split, some in (("train", rows), ("test", rows[:1])):
        (path / f"{split}.csv").write_text(csv_text(some, ","), newline="")


WRITERS: Mapping[str, Callable[[Path, list[dict[str, Any]]], Any]] = {
    "rows.jsonl": lambda path, rows: path.write_text("\n".join(map(json.dumps, rows))),
    "rows.json": lambda path, rows: path.write_text("\ufeff" + json.dumps(rows, indent=1)),
    "one.json": lambda path, rows: path.write_text(json.dumps({"version": "1", "data": rows}, indent=1)),
    "lines.json": lambda path, rows: path.write_text("\n".join(map(json.dumps, rows))),
    "rows.csv": lambda path, rows: path.write_bytes(b"\xef\xbb\xbf" + csv_text(rows, ",").encode()),
    "rows.tsv": lambda path, rows: path.write_text(csv_text(rows, "\t"), newline=""),
    "rows.parquet": write_table,
    "rows.pq": write_table,
    "rows.arrow": write_table,
    "feather.arrow": _feather,
    "saved": _saved,
    "saved_splits:train": lambda path, rows: _saved_splits(path.with_name("saved_splits"), rows),
    "repo:train": lambda path, rows: repository(path.with_name("repo"), train=rows, test=rows[:1]),
    "tables:train": lambda path, rows: _tables(path.with_name("tables"), rows),
    "one_split": lambda path, rows: repository(path, train=rows),
    "repo@data:train[:3]": lambda path, rows: repository(path.with_name("repo"), train=[*rows, *rows]),
}


@pytest.fixture
def folder(tmp_path: Path, png: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds `box.png`, wherever paths of images start; the cache of `datasets` is a folder of its own."""
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for place in ("", "saved", "saved_splits", "repo", "one_split", "tables"):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "box.png").write_bytes(png)
    return tmp_path


def essence(tasks: list[Task]) -> list[tuple[Any, ...]]:
    return [(task.id, task.question, len(task.images), task.answers) for task in tasks]


EXPECTED = [("a", "007?", 1, ("007",)), ("b", 'Not "NA",\nbut?', 0, ("NA",)), ("c", "1 + 0", 0, ("1.0",))]


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_source_gives_the_same_rows(folder: Path, name: str) -> None:
    WRITERS[name](folder / name, ROWS)
    source = folder / name
    assert essence(list(read_tasks(source))) == EXPECTED
    rows: Any = load_dataset_rows(source, cache_dir=folder / "cache")
    assert essence([row_to_task(row) for row in rows]) == EXPECTED
    assert count_rows(find_source(source)) == 3


@pytest.mark.parametrize("name", WRITERS)
def test_a_bad_row_is_named_and_left_out_whatever_holds_it(folder: Path, name: str) -> None:
    WRITERS[name](folder / name, [ROWS[0], BAD, ROWS[2]])
    with pytest.raises(
        RowError, match=r"(line 2|line 3|row 1 \(counted from 0\)): unreadable image: .*gone\.png"
    ) as raised:
        load_dataset_rows(folder / name, cache_dir=folder / "cache")
    assert str(raised.value).startswith(f"{folder / name}, ")
    skipped = SkippedRows()
    rows = load_dataset_rows(folder / name, on_error="skip", cache_dir=folder / "cache", skipped=skipped)
    assert (rows["id"][:], len(skipped)) == (["a", "c"], 1)


@pytest.mark.parametrize("split", ["repo:train", "one_split"])
def test_a_streamed_set_is_read_as_far_as_it_is_used(folder: Path, split: str) -> None:
    WRITERS[split](folder / split, [*ROWS, BAD])
    reading = Reading(streaming=True, most_rows=3)
    rows: Any = load_dataset_rows(folder / split, reading=reading, cache_dir=folder / "cache")
    assert essence([row_to_task(row) for row in rows]) == EXPECTED
    assert not list((folder / "datasets").rglob("*.arrow"))  # the whole was not copied
    assert count_rows(find_source(folder / split, streaming=True)) is None


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "saved", "one_split"])
def test_what_changed_is_read_again(folder: Path, name: str) -> None:
    WRITERS[name](folder / name, ROWS)
    assert len(load_dataset_rows(folder / name, cache_dir=folder / "cache")) == 3
    if name == "one_split":
        (file,) = (folder / name).rglob("*.parquet")
        write_table(file, ROWS[:2])
        os.utime(file, (1, 1))
    else:
        WRITERS[name](folder / name, ROWS[:2])
    assert len(load_dataset_rows(folder / name, cache_dir=folder / "cache")) == 2


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ('[{"question": "?", "answer": "x"}, 3]', "row 1 ", "expected a JSON object, got a int"),
        ('[{"question": "?", "question": "!", "answer": "x"}]', "row 0 ", "'question' stands there twice"),
        ('[{"question": "\\ud83c?", "answer": "x"}]', "row 0 ", "surrogate"),
        ('[{"question": "?", "answer": "x"},\n {"question"', None, r"row 1 .*not JSON, nor can what follows be read"),
        ('[{"question": "?", "answer": "x"}', None, "the file is cut off"),
        ('[{"question": "?", "answer": "x"}] []', None, "more text follows the list of 1 rows"),
        ('{"question": "?",\n "answer": "x"}', None, "expected a list of objects, .*found question, answer"),
        ('{"a": [{"x": 1}], "b":\n [{"x": 1}]}', None, "found a, b"),
        ('"text"', None, "found str"),
        ("\x00\x00", None, "no UTF-8 text"),
    ],
)
def test_a_json_file_names_the_row_or_says_why_none_can_be_read(
    tmp_path: Path, text: str, place: str | None, reason: str
) -> None:
    (tmp_path / "rows.json").write_text(text)
    for on_error in ("raise", "skip"):
        skipped = SkippedRows()
        if on_error == "skip" and place is not None:
            list(read_tasks(tmp_path / "rows.json", on_error="skip", skipped=skipped))
            assert len(skipped) == 1 and skipped.errors[0].place.startswith(place)
        else:
            with pytest.raises(RowError if place else UserError, match=rf"rows\.json.*{reason}"):
                list(read_tasks(tmp_path / "rows.json", on_error=on_error))


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        (b"question,answer\na,b,c\n", "line 2", "3 cells under 2 names"),
        (b"question,answer\nx,y\nonly\n", "line 3", "1 cells under 2 names"),
        (b"question,answer\n\n\ncaf\xe9,b\n", "line 4", "not UTF-8"),
        (b'question,answer\n"a\nb",x\n"never closed,y\nz,z\n', "line 4", "not CSV"),
        (b'question,answer\n"a"b,y\n', "line 2", "not CSV"),
        (b"question,answer\n,y\n", "line 2", "the key 'question' is missing"),
        (b"question,question\na,b\n", None, "must name each column once"),
        (b"question,,answer\na,b,c\n", None, "must name each column once"),
        (b"", None, "must name each column once"),
        ("question,answer\na,b\n".encode("utf-16"), None, "no UTF-8 text"),
        (b"quesiton,answer\na,b\n", None, "'quesiton' is not known; did you mean 'question'"),
        (b"asked,answer\na,b\n", None, "nothing holds the question of a row: its columns are asked, answer"),
    ],
)
def test_a_table_of_text_names_the_line_or_says_why_none_can_be_read(
    tmp_path: Path, text: bytes, place: str | None, reason: str
) -> None:
    (tmp_path / "rows.csv").write_bytes(text)
    with pytest.raises(RowError if place else UserError, match=rf"rows\.csv.*{place or ''}.*{reason}"):
        list(read_tasks(tmp_path / "rows.csv"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone.csv", "data file not found"),
        ("./gone", "data file not found"),
        ("a/b/c", "data file not found"),
        ("nobody/nothing", "nobody/nothing is no file or folder here, and as a data set on the Hub it cannot be used"),
        ("nobody/nothing@sub:test", "as a data set on the Hub it cannot be used"),
        ("{folder}/rows.csv:train", "rows.csv is a file, which has no splits"),
        ("{folder}/repo", r"repo has the splits train, test: name one, as .*repo:train"),
        ("{folder}/repo:dev", "repo has no split 'dev': it has train, test"),
        ("{folder}/saved_splits", "has the splits train, test: name one"),
        ("{folder}/saved:train", "is one data set without splits: leave out `:train`"),
        ("{folder}/saved@data", "has no folders to name behind @"),
        ("{folder}/repo@nowhere:train", "repo.* cannot be used"),
        ("{folder}/empty", "the folder holds no data file, found nothing"),
    ],
)
def test_a_source_that_is_not_there_is_told_in_a_line(folder: Path, name: str, reason: str) -> None:
    for each in ("rows.csv", "saved", "saved_splits:train", "repo:train"):
        WRITERS[each](folder / each, ROWS)
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=reason) as raised:
        list(read_tasks(name.replace("{folder}", str(folder))))
    assert len(str(raised.value)) < 1000 and "\n" not in str(raised.value)


def test_a_part_of_a_split_cannot_be_streamed(folder: Path) -> None:
    WRITERS["repo:train"](folder / "repo:train", ROWS)
    with pytest.raises(UserError, match=r"no part of a split can be streamed: name max_samples_per_file"):
        list(read_tasks(f"{folder}/repo:train[:2]", reading=Reading(streaming=True)))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a/train.jsonl", "train"),
        ("hiyouga/geometry3k:test", "geometry3k-test"),
        ("o/n@sub/dir:test[:10%]", "n-sub-dir-test-10"),
        ("mydata", "mydata"),
        ("mydata.v2/", "mydata.v2"),
    ],
)
def test_results_go_by_a_name_that_can_be_a_files(text: str, name: str) -> None:
    assert data_name(text) == name


def test_what_is_wrong_with_a_row_is_told_before_what_is_wrong_with_all(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"Question": "x?", "answer": "1"}))
    with pytest.raises(RowError, match="line 1: the key 'Question' is not known; did you mean 'question'"):
        list(read_tasks(tmp_path / "rows.jsonl"))
