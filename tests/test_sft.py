import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from runs import lessons, sft_arguments, write_jsonl

from mmsearch_trl import sft
from mmsearch_trl.core.completion import SamplingParams
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.observation import ImageHit
from mmsearch_trl.core.reward import RewardParts, ScoredTrajectory
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.data.demonstration_files import DemonstrationFile
from mmsearch_trl.data.rows import RowError
from mmsearch_trl.engine.scripted import ScriptedEngine
from mmsearch_trl.recipe.command_line import recipe_arguments
from mmsearch_trl.recipe.recipe import load_recipe
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.loop import run_trajectory
from mmsearch_trl.search.config import SearchConfig
from mmsearch_trl.search.factory import build_runtime
from mmsearch_trl.search.image.index import ImageIndexConfig
from mmsearch_trl.search.text.bm25 import BM25Config
from mmsearch_trl.traces.files import TraceWriter
from mmsearch_trl.trainer.demonstrations import as_trajectory, collate
from mmsearch_trl.world.protocol import build_protocol
from mmsearch_trl.world.tokenizer import build_processor
from mmsearch_trl.world.world import Group, World


pytestmark = pytest.mark.slow

PROTOCOL = build_protocol(build_processor())
TASK = World(0).tasks(Group.KNOWN)[2]
LOOK = "<reason> it is new</reason><search><img></search>"
READ = f"<reason> it is new</reason><text_search> {TASK.answers[0]}</text_search>"
ANSWER = f"<reason> city</reason><answer> {TASK.answers[0]}</answer>"


def rolled_out(home: Path, *texts: str, limits: Limits | None = None) -> Trajectory:
    """What a rollout with the world's tools makes of these turns."""
    chat = PROTOCOL.chat
    turns = [[*chat.tokenizer(text)["input_ids"], chat.turn_end_id] for text in texts]
    world = home / "world"
    image, text = ImageIndexConfig(path=str(world / "image_index")), BM25Config(path=str(world / "text_index"))
    tools = build_runtime(SearchConfig(image=image, text=text))
    engine = ScriptedEngine(turns, [chat.turn_end_id])
    sampling = SamplingParams(max_tokens=64)
    return asyncio.run(run_trajectory(TASK, engine, PROTOCOL, tools, limits or Limits(), sampling))


def traced(folder: Path, *trajectories: Trajectory, accuracy: float = 1.0) -> Path:
    """The trace file that a run would write of them."""
    path = folder / "traces" / "train-rank0.jsonl"
    scored = [ScoredTrajectory(trajectory=t, parts=RewardParts(1.0, accuracy, 1.0, 0, None)) for t in trajectories]
    with TraceWriter(path, PROTOCOL.chat.tokenizer) as writer:
        writer.write(scored, step=0)
    return path


def conversation(**changes: Any) -> dict[str, Any]:
    turns = [{"assistant": LOOK}, {"image_results": [{"title": "Bel Tor"}]}, {"assistant": ANSWER}]
    return {"question": TASK.question, "turns": turns} | changes


def test_a_trace_becomes_the_tokens_of_its_rollout(world_home: Path, tmp_path: Path) -> None:
    rollouts = [
        rolled_out(world_home, LOOK, READ, ANSWER),
        rolled_out(world_home, ANSWER),
        rolled_out(world_home, READ, READ, ANSWER, limits=Limits(forced_answer=True, text_search_limit=1)),
        rolled_out(world_home, LOOK, ANSWER, limits=Limits(max_response_tokens=45)),
    ]
    assert " too long" in "".join(part for part in rollouts[3].turns[0].reply if isinstance(part, str))
    demonstrations = DemonstrationFile(traced(tmp_path, *rollouts))
    assert len(demonstrations) == 4
    for number, rollout in enumerate(rollouts):
        again = as_trajectory(demonstrations[number], PROTOCOL)
        assert again.token_ids == rollout.token_ids
        assert again.loss_mask == rollout.loss_mask
        assert [image.key for image in again.images] == [image.key for image in rollout.images]


def test_only_traces_with_a_right_answer_are_demonstrations(world_home: Path, tmp_path: Path) -> None:
    traced(tmp_path, rolled_out(world_home, ANSWER))
    path = traced(tmp_path, rolled_out(world_home, LOOK, ANSWER), rolled_out(world_home, ANSWER), accuracy=0.0)
    file = DemonstrationFile(path)
    assert (len(file), file.wrong) == (1, 2)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match=r"no demonstration is left \(2 traces without a right answer\)"):
        DemonstrationFile(path)


def test_only_what_the_assistant_says_is_in_the_loss(world_home: Path, tmp_path: Path) -> None:
    file = DemonstrationFile(write_jsonl(tmp_path / "d.jsonl", [conversation()]))
    batch = collate([as_trajectory(file[0], PROTOCOL)], PROTOCOL.chat, 0)
    learned = batch["labels"][0]
    text = PROTOCOL.chat.tokenizer.decode(learned[learned >= 0])
    assert text == f"{LOOK}<|im_end|>{ANSWER}<|im_end|>"


def test_a_conversation_shows_its_pictures(world_home: Path) -> None:
    world = world_home / "world"
    file = DemonstrationFile(write_jsonl(world / "shown.jsonl", lessons(world)))
    trajectory = as_trajectory(file[0], PROTOCOL)
    assert [image.image.size for image in trajectory.images] == [(56, 56), *[(28, 28)] * 3]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (conversation(turns=[]), "'turns' must be a list that is not empty"),
        (conversation(question=" "), "'question' must be a text that is not empty"),
        (conversation(image="gone.png"), "gone.png"),
        (conversation(turns=[{"assistant": ANSWER}, {"assistant": ANSWER}]), "turn 1 must have the key image_results"),
        (conversation(turns=[{"assistant": LOOK}, {"image_results": []}]), "the last turn must be the assistant's"),
        (
            conversation(turns=[{"assistant": LOOK}, {"image_results": [{"text": "-"}]}, {"assistant": ANSWER}]),
            "a result has the keys image, title, url",
        ),
        (
            conversation(turns=[{"assistant": ANSWER}, {"text_results": []}, {"assistant": ANSWER}]),
            "assistant turn 0 is followed by results of text_search and does not end in a call of it, but in answer",
        ),
        (conversation(turns=[{"assistant": LOOK}]), "assistant turn 0 is the last and ends in a search"),
    ],
)
def test_a_demonstration_that_cannot_be_used_is_named_by_file_and_line(
    row: dict[str, Any], message: str, world_home: Path, tmp_path: Path
) -> None:
    file = write_jsonl(tmp_path / "d.jsonl", [conversation(), row])
    recipe = load_recipe(*recipe_arguments(sft_arguments(world_home, tmp_path / "run", train_files=file)), kind="sft")
    demonstrations = sft.Demonstrations(recipe, PROTOCOL)
    with pytest.raises(RowError) as caught:
        demonstrations.usable([str(file)], None, "raise")
    assert str(caught.value).startswith(f"{file}, line 2: ")
    assert message in str(caught.value)
    assert demonstrations.usable([str(file)], None, "skip")["index"] == [0]


def test_a_demonstration_over_max_length_is_left_out_whole(world_home: Path, tmp_path: Path) -> None:
    short = conversation(turns=[{"assistant": ANSWER}])
    file = write_jsonl(tmp_path / "d.jsonl", [conversation(), short])
    recipe = load_recipe(*recipe_arguments(sft_arguments(world_home, tmp_path / "run", train_files=file)), kind="sft")
    demonstrations = sft.Demonstrations(recipe, PROTOCOL)
    length = len(demonstrations.trajectory(str(file), 1).token_ids)
    assert demonstrations.usable([str(file)], length, "raise")["index"] == [1]
    with pytest.raises(UserError, match=r"no demonstration is left of .*: 0 bad, 2 over max_length"):
        demonstrations.usable([str(file)], length - 1, "raise")


def test_a_traces_picture_comes_in_full_size_from_the_questions_file(world_home: Path, tmp_path: Path) -> None:
    path = traced(tmp_path, rolled_out(world_home, ANSWER))
    Image.new("RGB", (1000, 500), "red").save(tmp_path / "large.png")
    row = {"id": TASK.id, "question": TASK.question, "image": "large.png", "answers": list(TASK.answers)}
    questions = write_jsonl(tmp_path / "questions.jsonl", [row])
    arguments = sft_arguments(world_home, tmp_path / "run", train_files=path, question_files=questions)
    demonstrations = sft.Demonstrations(load_recipe(*recipe_arguments(arguments), kind="sft"), PROTOCOL)
    assert demonstrations.trajectory(str(path), 0).images[0].image.size == (1000, 500)


def test_what_the_world_command_writes_can_be_learned_from(
    world_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = sft_arguments(world_home, tmp_path / "run", max_steps=8, logging_steps=1)
    recipe = load_recipe(*recipe_arguments(arguments), kind="sft")
    recipe.validate()
    trainer = sft.train(recipe)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 1
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["trl"].startswith("1.16")
    assert (tmp_path / "run" / "model.safetensors").exists()
    run = tmp_path / "run"
    assert f"saved: {run}; to train it on: mmsearch train --config RECIPE --model_name_or_path {run}\n" in (
        capsys.readouterr().out
    )


def test_a_line_that_is_no_object_is_skipped_like_any_bad_row(world_home: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "d.jsonl", [conversation(), conversation()])
    first, second = file.read_bytes().splitlines()
    file.write_bytes(b"\xef\xbb\xbf" + first + b'\r\n{"question": \r\n' + second + b"\r\n")
    recipe = load_recipe(*recipe_arguments(sft_arguments(world_home, tmp_path / "run", train_files=file)), kind="sft")
    demonstrations = sft.Demonstrations(recipe, PROTOCOL)
    with pytest.raises(RowError, match=r"d\.jsonl, line 2: not JSON"):
        demonstrations.usable([str(file)], None, "raise")
    assert demonstrations.usable([str(file)], None, "skip")["index"] == [0, 2]
    assert DemonstrationFile(file)[2].task.id == "d-3"


def test_a_demonstrations_images_have_the_forms_of_data(world_home: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "box.png")
    text = base64.b64encode((tmp_path / "box.png").read_bytes()).decode()
    shown = [{"assistant": LOOK}, {"image_results": [{"title": "x", "image": text}]}, {"assistant": ANSWER}]
    rows = [
        conversation(id=None, images=["box.png"]),
        conversation(id=7, image=f"data:image/png;base64,{text}", question=f"<image>\n{TASK.question}", turns=shown),
        conversation(picture="box.png"),
        conversation(image="http://example.org/" + "a" * 20_000),
    ]
    file = DemonstrationFile(write_jsonl(tmp_path / "d.jsonl", rows))
    assert [image.size for image in (*file[0].task.images, *file[1].task.images)] == [(40, 30)] * 2
    assert (file[0].task.id, file[1].task.id, file[1].task.question) == ("d-1", "7", TASK.question)
    observation = file[1].observations[0]
    assert observation is not None
    [hit] = observation.hits
    assert isinstance(hit, ImageHit) and hit.thumbnail is not None
    with pytest.raises(RowError, match="line 3: the row has no image, and 'picture' seems to name one"):
        file[2]
    with pytest.raises(RowError, match=r"line 4: .* not the address .*: download it") as raised:
        file[3]
    assert len(str(raised.value)) < 1000
