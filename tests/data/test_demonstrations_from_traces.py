"""Traces of a run without tools become demonstrations in the tokens of their rollouts."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from PIL import Image

from mmsearch_trl import sft
from mmsearch_trl.core.completion import SamplingParams
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.message import Message
from mmsearch_trl.core.reward import RewardParts, ScoredTrajectory
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.data.demonstration_files import DemonstrationFile, holds_traces
from mmsearch_trl.engine.scripted import ScriptedEngine
from mmsearch_trl.protocol.direct import DirectProtocol
from mmsearch_trl.recipe.recipe import load_recipe
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.loop import run_trajectory
from mmsearch_trl.traces.files import TraceWriter
from mmsearch_trl.trainer.demonstrations import as_trajectory


PROTOCOL = DirectProtocol(tiny.qwen25().protocol().chat)
RED, WIDE = Image.new("RGB", (60, 40), "red"), Image.new("RGB", (800, 200), "green")
ASKED = Message("user", ("what is ", None, "?"))
DIALOGUE = (
    Message("system", ("think first",)),
    Message("user", ("how many?", None)),
    Message("assistant", ("<answer>2</answer>",)),
    ASKED,
)
ANSWER = "<think>it is new</think><answer>red</answer>"
TASKS = [
    Task(id="a", question="what is ?", images=(RED,), messages=(ASKED,), answers=("red",)),
    Task(id="b", question="what is ?", images=(RED, RED), messages=DIALOGUE, answers=("red",)),
    Task(id="c", question="who founded it?", answers=("red",)),
    Task(id="d", question="what is this?", images=(RED,), answers=("red",)),
]


def rolled_out(task: Task, *, ended: bool = True) -> Trajectory:
    chat = PROTOCOL.chat
    turn = (*chat.tokenizer(ANSWER, add_special_tokens=False)["input_ids"], *([chat.turn_end_id] if ended else []))
    engine = ScriptedEngine([turn], [chat.turn_end_id])
    return asyncio.run(run_trajectory(task, engine, PROTOCOL, None, Limits(), SamplingParams(max_tokens=64)))


def traced(folder: Path, *trajectories: Trajectory, accuracy: float = 1.0) -> Path:
    """The trace file that a run would write of them."""
    path = folder / "traces" / "train-rank0.jsonl"
    scored = [ScoredTrajectory(trajectory=t, parts=RewardParts(1.0, accuracy, 1.0, None, None)) for t in trajectories]
    with TraceWriter(path, PROTOCOL.chat.tokenizer) as writer:
        writer.write(scored, step=0)
    return path


def learning(folder: Path, *files: Path, **keys: Any) -> sft.Demonstrations:
    values = {"model_name_or_path": "m", "protocol": "direct", "train_files": [str(file) for file in files]}
    values |= {"use_cpu": True, "bf16": False} | keys
    (folder / "sft.yaml").write_text(yaml.safe_dump(values))
    recipe = load_recipe(folder / "sft.yaml", kind="sft")
    recipe.validate(check_files=False)
    found = sft.demonstrations_of(recipe, PROTOCOL)
    assert isinstance(found, sft.Demonstrations)
    return found


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)
def test_what_is_laid_out_is_what_was_rolled_out(task: Task, tmp_path: Path) -> None:
    """The assistant's words in the prompt are shown, and only what the model said is learned."""
    rollout = rolled_out(task)
    again = as_trajectory(DemonstrationFile(traced(tmp_path, rollout))[0], PROTOCOL)
    assert (again.token_ids, again.loss_mask) == (rollout.token_ids, rollout.loss_mask)
    assert again.prompt_ids == rollout.prompt_ids and not again.has_tools
    assert [image.key for image in again.images] == [image.key for image in rollout.images]


def test_a_turn_that_was_cut_is_learned_without_an_end(tmp_path: Path) -> None:
    rollout = rolled_out(TASKS[0], ended=False)
    assert rollout.turns[0].token_ids[-1] != PROTOCOL.chat.turn_end_id
    again = as_trajectory(DemonstrationFile(traced(tmp_path, rollout))[0], PROTOCOL)
    assert (again.token_ids, again.loss_mask) == (rollout.token_ids, rollout.loss_mask)


def test_only_right_answers_are_learned(tmp_path: Path) -> None:
    traced(tmp_path, rolled_out(TASKS[0]), rolled_out(TASKS[1]))
    path = traced(tmp_path, rolled_out(TASKS[2]), accuracy=0.0)
    assert learning(tmp_path, path).usable([str(path)], None, "raise")["index"] == [0, 1]


def test_a_large_picture_has_its_tokens_from_the_questions_file(tmp_path: Path) -> None:
    rollout = rolled_out(replace(TASKS[0], images=(WIDE,)))
    path = traced(tmp_path, rollout)
    WIDE.save(tmp_path / "wide.png")
    content = [{"type": "text", "text": "what is "}, {"type": "image", "image": "wide.png"}]
    content.append({"type": "text", "text": "?"})
    row = {"id": "a", "messages": [{"role": "user", "content": content}], "answer": "red"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(row) + "\n")
    assert learning(tmp_path, path).trajectory(str(path), 0).token_ids != rollout.token_ids
    whole = learning(tmp_path, path, question_files=[str(tmp_path / "questions.jsonl")])
    assert whole.trajectory(str(path), 0).token_ids == rollout.token_ids


def test_a_trace_that_does_not_tell_who_spoke_is_refused(tmp_path: Path) -> None:
    path = traced(tmp_path, rolled_out(TASKS[1]))
    row = json.loads(path.read_text())
    assert row.pop("messages") == [["system", 1], ["user", 2], ["assistant", 1], ["user", 3]]
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"line 1: the trace of another version: .*; name question_files"):
        learning(tmp_path, path).usable([str(path)], None, "raise")


def test_traces_and_rows_are_not_mixed_and_have_keys_of_their_own(tmp_path: Path) -> None:
    path, rows = traced(tmp_path, rolled_out(TASKS[0])), tmp_path / "rows.jsonl"
    said = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "that"}]
    rows.write_text(json.dumps({"messages": said}) + "\n")
    assert holds_traces(str(path)) and not holds_traces(str(rows)) and not holds_traces("owner/name")
    with pytest.raises(UserError, match=r"train-rank0\.jsonl holds traces and .*rows\.jsonl rows: learn from one"):
        learning(tmp_path, path, rows)
    for key, value in (("max_samples", 3), ("system_prompt", "think first"), ("max_pixels", 100_000)):
        with pytest.raises(UserError, match=f"{key} is of rows, and traces are read whole"):
            learning(tmp_path, path, **{key: value})
    with pytest.raises(UserError, match="question_files belong to traces, and the files hold rows"):
        learning(tmp_path, rows, question_files=[str(rows)])


def test_a_trace_of_searches_is_not_learned_without_tools(tmp_path: Path) -> None:
    path = traced(tmp_path, rolled_out(TASKS[2]))
    row = json.loads(path.read_text())
    row["turns"] *= 2
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="line 1: the assistant speaks 2 times, and without tools it has one turn"):
        learning(tmp_path, path).trajectory(str(path), 0)
