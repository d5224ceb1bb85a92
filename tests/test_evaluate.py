import json
from pathlib import Path

import pytest
from runs import grpo_arguments, write_jsonl

from mmsearch_trl import evaluate as script
from mmsearch_trl.commands.main import main
from mmsearch_trl.core.errors import EngineError
from mmsearch_trl.engine.transformers import TransformersEngine
from mmsearch_trl.evaluation.parts import PartWriter
from mmsearch_trl.traces.files import read_traces


@pytest.mark.slow
def test_a_model_is_evaluated_greedily_from_its_recipe_and_every_row_is_saved(
    world_home: Path, taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (world_home / "world" / "known.jsonl").read_text().splitlines()[:6]
    rows = [row | {"image": str(world_home / "world" / row["image"])} for row in map(json.loads, lines)]
    file = write_jsonl(tmp_path / "first.jsonl", rows)
    options = {"model_name_or_path": taught, "eval_files": file, "eval_temperature": 0, "train_files": "gone.jsonl"}
    assert main(["eval", *grpo_arguments(world_home, tmp_path / "run", **options)]) == 0
    folder = tmp_path / "run" / "evaluation"
    saved = json.loads((folder / "first_6.json").read_text())
    assert [row["id"] for row in saved] == [row["id"] for row in rows]
    assert all(row["right"] and row["actions"] == ["image_search", "answer"] for row in saved[:3])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["temperature"] == 0.0
    searches = summary["searches"]["image_search"]
    assert searches["calls"] == sum("image_search" in row["actions"] for row in saved)
    assert searches["bytes"] == searches["price"] == 0, "an index of one's own costs nothing"
    overall = summary["data"]["first"]["overall"]
    assert overall["n"] == 6
    assert overall["accuracy"] == sum(row["right"] for row in saved) / 6
    assert len(list(read_traces(folder))) == 6
    printed = capsys.readouterr().out
    assert "first" in printed and "accuracy" in printed and "image search: " in printed


def test_a_killed_evaluation_goes_on_with_the_rows_that_it_had_not_written(
    world_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_home / "world"
    rows = [json.loads(line) for line in (world / "known.jsonl").read_text().splitlines()[:5]]
    file = write_jsonl(tmp_path / "five.jsonl", [row | {"image": str(world / row["image"])} for row in rows])
    write = PartWriter.write
    left = [3]  # a header and two rows

    def write_some(self: PartWriter, lines: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write(self, lines)

    def arguments(name: str) -> list[str]:
        return ["eval", *grpo_arguments(world_home, tmp_path / name, eval_files=file, max_trajectories_in_flight=1)]

    assert main(arguments("whole")) == 0
    monkeypatch.setattr(PartWriter, "write", write_some)
    with pytest.raises(KeyboardInterrupt):
        main(arguments("killed"))
    left[0] = 3  # the rows that are left
    assert main(arguments("killed")) == 0
    whole, killed = (
        json.loads((tmp_path / n / "evaluation" / "five_5.json").read_text()) for n in ("whole", "killed")
    )
    assert [row | {"seconds": 0} for row in whole] == [row | {"seconds": 0} for row in killed]
    assert len(list(read_traces(tmp_path / "killed" / "evaluation"))) == 5


def test_evaluating_twice_does_not_double_the_traces(world_home: Path, tmp_path: Path) -> None:
    line = json.loads((world_home / "world" / "known.jsonl").read_text().splitlines()[0])
    file = write_jsonl(tmp_path / "one.jsonl", [line | {"image": str(world_home / "world" / line["image"])}])
    for _ in range(2):
        assert main(["eval", *grpo_arguments(world_home, tmp_path / "run", eval_files=file)]) == 0
    assert len(list(read_traces(tmp_path / "run" / "evaluation"))) == 1


def test_a_bad_row_is_named_before_the_model_is_loaded(
    world_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "load_agent", lambda model: pytest.fail("a model was loaded"))
    rows = [{"question": "what city is it in?", "answers": ["Kelso"]}, {"question": "?", "answers": []}]
    file = write_jsonl(tmp_path / "bad.jsonl", rows)
    assert main(["eval", *grpo_arguments(world_home, tmp_path / "run", eval_files=file)]) == 1
    assert f"{file}, line 2: " in capsys.readouterr().err


def test_two_data_files_of_one_name_are_refused(
    world_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (write_jsonl(tmp_path / name / "test.jsonl", [{"question": "?"}]) for name in ("a", "b"))
    files = f"[{first}, {second}]"
    assert main(["eval", *grpo_arguments(world_home, tmp_path / "run", eval_files=files)]) == 1
    assert "two files have one name" in capsys.readouterr().err


def test_a_model_that_never_got_to_answer_is_no_result(
    world_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(self: TransformersEngine, *given: object) -> None:
        raise EngineError("out of memory")

    monkeypatch.setattr(TransformersEngine, "generate", broken)
    line = json.loads((world_home / "world" / "known.jsonl").read_text().splitlines()[0])
    file = write_jsonl(tmp_path / "one.jsonl", [line | {"image": str(world_home / "world" / line["image"])}])
    assert main(["eval", *grpo_arguments(world_home, tmp_path / "run", eval_files=file)]) == 1
    assert "none of 1 rollouts worked; the first: out of memory" in capsys.readouterr().err
    assert not (tmp_path / "run" / "evaluation" / "summary.json").exists()


@pytest.mark.slow
def test_a_folder_holds_the_evaluation_of_one_model(
    world_home: Path, taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evaluated on other data, a second model's trajectories would stand among the first's."""
    lines = (world_home / "world" / "known.jsonl").read_text().splitlines()[:3]
    rows = [row | {"image": str(world_home / "world" / row["image"])} for row in map(json.loads, lines)]
    two, one = write_jsonl(tmp_path / "two.jsonl", rows[:2]), write_jsonl(tmp_path / "one.jsonl", rows[2:])
    folder = tmp_path / "run" / "evaluation"
    assert main(["eval", *grpo_arguments(world_home, tmp_path / "run", eval_files=two)]) == 0
    other = grpo_arguments(world_home, tmp_path / "run", eval_files=one, model_name_or_path=taught)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["eval", *other]) == 1
    message = capsys.readouterr().err
    assert f"holds an evaluation of {world_home / 'model'}: name another output_dir" in message
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert main(["eval", *other, "--overwrite_output_dir"]) == 0
    assert {record.split for record in read_traces(folder)} == {"one"}
    assert sorted(path.name for path in folder.glob("*.json")) == ["one_1.json", "summary.json"]
