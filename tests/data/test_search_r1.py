import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmsearch_trl.commands.main import main
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.dataset import load_dataset_rows, row_to_task
from mmsearch_trl.data.rows import RowError, SkippedRows
from mmsearch_trl.data.search_r1_sets import TEST_SETS
from mmsearch_trl.data.tasks import read_tasks


def row(**changes: Any) -> dict[str, Any]:
    """A row as upstream's preparation writes it."""
    instructions = "Answer the question with <answer> and </answer>, as in <answer> Beijing </answer>. Question: "
    cells = {
        "data_source": "nq",
        "prompt": [{"role": "user", "content": f"{instructions}who wrote moby dick?\n"}],
        "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": ["Herman Melville", "Melville"]}},
        "extra_info": {"split": "train", "index": 7},
    }
    return {name: value for name, value in (cells | changes).items() if value is not ...}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def test_a_row_becomes_a_task_with_the_bare_question(tmp_path: Path) -> None:
    [task] = read_tasks(write(tmp_path / "train.parquet", row()))
    assert (task.id, task.question, task.images) == ("nq-0", "who wrote moby dick?", ())
    assert task.answers == ("Herman Melville", "Melville") and task.data_source == "nq"
    assert task.extra == {"split": "train", "index": 7}


def test_columns_that_the_merged_file_keeps_are_preferred(tmp_path: Path) -> None:
    [task] = read_tasks(write(tmp_path / "t.parquet", row(id="train_3", question="who wrote it")))
    assert (task.id, task.question) == ("nq-train_3", "who wrote it")


def test_rows_reach_the_training_dataset(tmp_path: Path) -> None:
    file = write(tmp_path / "t.parquet", row(), row(data_source="hotpotqa"))
    dataset: Any = load_dataset_rows(file, cache_dir=tmp_path / "cache")
    assert [row_to_task(cells).data_source for cells in dataset] == ["nq", "hotpotqa"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"reward_model": {"style": "rule", "ground_truth": {"target": []}}}, "the ground truth is empty"),
        ({"prompt": [{"role": "user", "content": "who?"}]}, "no 'Question: ' before its question"),
        ({"prompt": [{"role": "user", "content": " "}]}, "the question is empty"),
        ({"prompt": [{"role": "user", "content": "Question: "}]}, "the question is empty"),
        ({"prompt": []}, "no message of the user"),
        (
            {"prompt": [{"role": "user", "content": "Question: a?\nAnswer: b\nQuestion: c?\nQuestion: d?"}]},
            "several lines",
        ),
        ({"reward_model": {"style": "rule", "ground_truth": {"target": ["The", "+"]}}}, "cannot be scored"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    file = write(tmp_path / "t.parquet", row(**({"question": None} | changes)), row(question="who?"))
    with pytest.raises(RowError, match=rf"t\.parquet, row 0 \(counted from 0\): .*{reason}"):
        list(read_tasks(file))
    skipped = SkippedRows()
    assert len(list(read_tasks(file, on_error="skip", skipped=skipped))) == len(skipped) == 1


@pytest.fixture
def flashrag(tmp_path: Path) -> Path:
    """A copy of FlashRAG's files with a line or two each; some sets have no test split."""
    folder = tmp_path / "flashrag"
    splits = {name: ["train", "dev", "test"] for name in TEST_SETS}
    splits |= {"hotpotqa": ["train", "dev"], "bamboogle": ["train"]}
    for name, names in splits.items():
        (folder / name).mkdir(parents=True)
        for split in names:
            line = {
                "id": f"{split}_0",
                "question": f"who {name} {split}",
                "golden_answers": ["she", "b", 3],
                "metadata": {},
            }
            (folder / name / f"{split}.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    return folder


def test_the_sets_are_written_each_from_the_split_that_upstream_takes(
    tmp_path: Path, flashrag: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data"
    assert main(["data", "search-r1", str(out), "--source", str(flashrag)]) == 0
    assert f"{out / 'train.jsonl'}: 2 rows" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == sorted(f"{name}.jsonl" for name in ("train", *TEST_SETS))
    assert [task.id for task in read_tasks(out / "train.jsonl")] == ["nq-train_0", "hotpotqa-train_0"]
    taken = {name: next(read_tasks(out / f"{name}.jsonl")) for name in TEST_SETS}
    assert [taken[name].question.split()[-1] for name in ("nq", "hotpotqa", "bamboogle")] == ["test", "dev", "train"]
    assert taken["musique"].answers == ("she", "b", "3") and taken["musique"].data_source == "musique"


def test_what_is_missing_is_named(tmp_path: Path, flashrag: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (flashrag / "nq" / "train.jsonl").write_text('{"id": "0", "question": "who"}\n', encoding="utf-8")
    assert main(["data", "search-r1", str(tmp_path / "out"), "--source", str(flashrag)]) == 1
    assert "train.jsonl, line 1: not a row of FlashRAG: the key 'golden_answers' is missing" in capsys.readouterr().err
    for line in (
        '{"id": "0", "question": "who", "golden_answers": []}',
        '{"id": "0", "question": null, "golden_answers": ["a"]}',
    ):
        (flashrag / "nq" / "train.jsonl").write_text("\n" + line + "\n", encoding="utf-8")
        assert main(["data", "search-r1", str(tmp_path / "out"), "--source", str(flashrag)]) == 1
        assert "train.jsonl, line 2: not a row of FlashRAG" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
    (flashrag / "musique" / "test.jsonl").unlink()
    (flashrag / "musique" / "dev.jsonl").unlink()
    (flashrag / "musique" / "train.jsonl").unlink()
    assert main(["data", "search-r1", str(tmp_path / "out"), "--source", str(flashrag)]) == 1
    assert "no musique/test.jsonl or musique/dev.jsonl or musique/train.jsonl" in capsys.readouterr().err


def test_flashrags_own_lines_are_read(flashrag: Path) -> None:
    [task] = read_tasks(flashrag / "nq" / "dev.jsonl")
    assert (task.question, task.answers) == ("who nq dev", ("she", "b", "3"))


BRIEF = "Answer with <answer> and </answer>, as in <answer> Beijing </answer>. Question: "
SYSTEM = {"role": "system", "content": "Answer in <answer> tags."}


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        (f"{BRIEF}who asked 'Question: why?'", "who asked 'Question: why?'"),
        (f"{BRIEF}In Hamlet. Question: who dies?", "In Hamlet. Question: who dies?"),
        ([SYSTEM, {"role": "user", "content": "who wrote it?"}], "who wrote it?"),
        ([SYSTEM, {"role": "user", "content": "Question: who wrote it?"}], "who wrote it?"),
        ([SYSTEM, {"role": "user", "content": "He said. Question: who?"}], "He said. Question: who?"),
        ([{"role": "system", "content": "Be kind."}, {"role": "user", "content": f"{BRIEF}who?"}], "who?"),
        ([{"role": "user", "content": "hi"}, {"role": "user", "content": f"{BRIEF}who?\n"}], "who?"),
        ([{"role": "user", "content": [{"type": "text", "text": f"{BRIEF}who?"}]}], "who?"),
        ("Reason first.\nQuestion: who?", "who?"),
    ],
)
def test_the_question_stands_behind_the_instructions(tmp_path: Path, prompt: Any, question: str) -> None:
    [task] = read_tasks(write(tmp_path / "t.parquet", row(prompt=prompt)))
    assert task.question == question


def test_a_question_of_extra_info_is_preferred(tmp_path: Path) -> None:
    extra = {"question": "who wrote it?", "index": 7}
    [task] = read_tasks(write(tmp_path / "t.parquet", row(extra_info=extra, question=None)))
    assert (task.question, task.extra) == ("who wrote it?", extra)


def test_an_empty_id_is_a_missing_one(tmp_path: Path) -> None:
    file = write(tmp_path / "t.parquet", row(id=None), row(id=""), row(id="7"))
    assert [task.id for task in read_tasks(file)] == ["nq-0", "nq-1", "nq-7"]


def test_a_set_keeps_what_cannot_be_scored_for_its_reader(tmp_path: Path, flashrag: Path) -> None:
    line = '{"id": 3, "question": "which band", "golden_answers": ["The The"]}\r\n'
    (flashrag / "musique" / "test.jsonl").write_bytes(b"\xef\xbb\xbf" + line.encode())
    assert main(["data", "search-r1", str(tmp_path / "out"), "--source", str(flashrag)]) == 0
    skipped = SkippedRows()
    assert list(read_tasks(tmp_path / "out" / "musique.jsonl", on_error="skip", skipped=skipped)) == []
    assert "'The The' cannot be scored" in skipped.errors[0].reason


@pytest.mark.parametrize("column", ["image", "img_path", "photo"])
def test_a_column_of_images_is_not_lost(tmp_path: Path, column: str) -> None:
    file = write(tmp_path / "t.parquet", row(**{column: "a.png"}))
    with pytest.raises(UserError, match=rf"t\.parquet: the column '{column}' seems to hold images"):
        list(read_tasks(file))


def test_a_mistyped_column_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "t.parquet", row(**{"Question": "who?"}))
    with pytest.raises(UserError, match=r"the column 'Question' is not known; did you mean 'question'"):
        list(read_tasks(file))


def test_an_image_in_a_prompt_is_not_lost(tmp_path: Path) -> None:
    content = [
        {"type": "image", "image": "a.png", "text": None},
        {"type": "text", "text": f"{BRIEF}who?", "image": None},
    ]
    file = write(tmp_path / "t.parquet", row(prompt=[{"role": "user", "content": content}]))
    with pytest.raises(RowError, match="`prompt` holds an image, which would be lost"):
        list(read_tasks(file))
