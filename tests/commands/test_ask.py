"""`mmsearch ask` as a user types it."""

from pathlib import Path

import pytest
import tiny
from PIL import Image
from runs import grpo_arguments

from mmsearch_trl.commands.ask_once import _task
from mmsearch_trl.commands.main import main
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.protocol.direct import DirectProtocol
from mmsearch_trl.recipe.recipe import load_recipe


def _ask(question: str, model: Path, home: Path, *more: str) -> int:
    keys = [
        word for word in grpo_arguments(home, home / "never", model_name_or_path=model) if "output_dir" not in word
    ]
    return main(["ask", question, "--model", str(model), *keys, *more])


@pytest.mark.slow
def test_turns_searches_and_the_answer_are_shown(
    taught: Path, world_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = next((world_home / "world" / "images").glob("world0-known-*-name-*.png"))
    assert _ask("what is its name?", taught, world_home, "--image", str(image)) == 0
    shown = capsys.readouterr().out
    first, found, answer = (shown.index(text) for text in ("<search><img></search>", "image-index, asked", "<answer>"))
    assert first < found < answer
    assert "2 turns, 1 tool call" in shown
    assert not (world_home / "never").exists()


def test_a_model_without_an_answer_says_how_it_ended(world_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _ask("what is its name?", world_home / "model", world_home, "--rollout.max_turn_tokens", "4") == 0
    assert "no answer (token_limit)\n1 turn, 0 tool calls" in capsys.readouterr().out


def test_the_recipe_is_the_one_that_the_run_left(
    world_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", "why?", "--model", str(tmp_path)]) == 1
    assert "recipe.yaml is not there: name a recipe with --config" in capsys.readouterr().err
    run = tmp_path / "run"
    run.mkdir()
    for file in (world_home / "model").iterdir():
        (run / file.name).symlink_to(file)
    (run / "recipe.yaml").write_text("extends: world/grpo\nrollout: {max_turns: true}\n")
    assert main(["ask", "why?", "--model", str(run)]) == 1
    assert f"{run / 'recipe.yaml'}: `rollout.max_turns` must be" in capsys.readouterr().err


def test_an_image_that_cannot_be_read_is_named(
    world_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no.png").write_text("no image")
    assert _ask("why?", world_home / "model", world_home, "--image", str(tmp_path / "no.png")) == 1
    assert "no.png" in capsys.readouterr().err


def test_a_question_without_tools_is_asked_in_the_words_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "model_name_or_path: m\nprotocol: direct\nuse_cpu: true\nbf16: false\n"
        'system_prompt: Think first.\ntemplate: "Solve: {question}"\n'
    )
    protocol = DirectProtocol(ChatEncoder(tiny.qwen25().processor))
    image = Image.new("RGB", (40, 40))
    task = _task("2 + 2?", image, load_recipe(tmp_path / "r.yaml"), protocol)
    assert [message.role for message in task.messages] == ["system", "user"]
    assert task.messages[0].text == "Think first." and task.messages[1].text == "Solve: 2 + 2?"
    assert (task.messages[1].content[0], task.question, task.images) == (None, "2 + 2?", (image,))
