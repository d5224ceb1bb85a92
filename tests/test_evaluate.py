import asyncio
import json
from pathlib import Path

import pytest
from runs import grpo_arguments, write_jsonl

from mmsearch_trl import evaluate as script
from mmsearch_trl.commands.main import main
from mmsearch_trl.core.completion import Completion, FinishReason, SamplingParams
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.task import Task
from mmsearch_trl.evaluation.rollouts import evaluate_tasks
from mmsearch_trl.protocol.mmsearch import MMSearchProtocol
from mmsearch_trl.rewards.mmsearch import RewardConfig
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.search.runtime import SearchRuntime
from mmsearch_trl.traces.files import read_traces
from mmsearch_trl.world.protocol import build_protocol
from mmsearch_trl.world.tokenizer import build_processor


PROTOCOL = build_protocol(build_processor())


class AlwaysKelso:
    """An engine that gives one answer and notes how it was asked to sample."""

    def __init__(self, protocol: MMSearchProtocol) -> None:
        text = "<reason> it is new</reason><answer> Kelso</answer>"
        self._turn = (*protocol.chat.tokenizer(text)["input_ids"], protocol.chat.turn_end_id)
        self.samplings: list[SamplingParams] = []

    async def generate(self, token_ids: object, images: list[ImageInput], sampling: SamplingParams) -> Completion:
        self.samplings.append(sampling)
        return Completion(self._turn, (0.0,) * len(self._turn), FinishReason.STOP)


def evaluated(tasks: list[Task], **options: float) -> tuple[list[float | None], list[SamplingParams]]:
    """Rewards and samplings of an evaluation with `AlwaysKelso`."""
    engine = AlwaysKelso(PROTOCOL)
    tools = SearchRuntime(None, None)
    scored = asyncio.run(evaluate_tasks(tasks, engine, PROTOCOL, tools, Limits(), RewardConfig(), **options))
    assert [item.trajectory.task for item in scored] == tasks
    return [item.reward for item in scored], engine.samplings


def task(number: int, answer: str = "Kelso") -> Task:
    return Task(id=f"task-{number}", question="what city is it in?", answers=(answer,))


def test_evaluation_is_greedy_unless_told_otherwise() -> None:
    assert evaluated([task(1)])[1][0].temperature == 0.0
    assert evaluated([task(1)], temperature=0.7)[1][0].temperature == 0.7


def test_a_task_is_sampled_alike_in_any_company() -> None:
    _, together = evaluated([task(1), task(2), task(3)], temperature=1.0, seed=5)
    _, alone = evaluated([task(3)], temperature=1.0, seed=5)
    assert together[2] == alone[0]
    assert len({sampling.seed for sampling in together}) == 3
    assert evaluated([task(3)], temperature=1.0, seed=6)[1] != alone


def test_every_task_is_scored_in_its_place() -> None:
    rewards, _ = evaluated([task(1), task(2, "Arbury"), task(3)])
    assert rewards == [1.0, pytest.approx(0.1), 1.0]


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
    files = f"[{tmp_path}/a/test.jsonl, {tmp_path}/b/test.jsonl]"
    assert main(["eval", *grpo_arguments(world_home, tmp_path / "run", eval_files=files)]) == 1
    assert "two files have one name" in capsys.readouterr().err
