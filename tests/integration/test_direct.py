"""A run without tools, from rows of messages to the model card: it works, and says nothing of searches anywhere."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import small_lm
import tiny
import yaml
from PIL import Image
from runs import write_jsonl

from mmsearch_trl.commands.main import main
from mmsearch_trl.traces.files import read_traces


SYSTEM = "think in <think></think>, then <answer></answer>"


def rows(folder: Path, *, pictures: bool) -> list[dict[str, Any]]:
    """Eight conversations of every form; with pictures, in half of them."""
    made = []
    for number in range(8):
        message: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
        said: Any = f"what is {number} + 2?"
        if number % 4 == 1:
            message += [{"role": "user", "content": said}, {"role": "assistant", "content": "nothing"}]
            said = "are you sure?"
        if pictures and number % 2:
            Image.new("RGB", (40 + number, 60), (10 * number, 0, 0)).save(folder / f"{number}.png")
            block = {"type": "image", "image": f"file://{folder}/{number}.png", "max_pixels": 28 * 28 * 4}
            said = [{"type": "text", "text": "here:"}, block, {"type": "text", "text": said}]
        message.append({"role": "user", "content": said})
        made.append({"message": json.dumps(message) if number % 3 else message, "answer": str(number + 2)})
    return made


@pytest.fixture(scope="module", params=["vision", "language"])
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe on a tiny model and on rows of messages; half of them with pictures where the model sees them."""
    folder = tmp_path_factory.mktemp("direct")
    pictures = request.param == "vision"
    if pictures:
        family = tiny.qwen25()
        model, processor = family.model(), family.processor
    else:
        processor = small_lm.build_tokenizer()
        model = small_lm.build_model(processor)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    (folder / "pictures").mkdir()
    data = rows(folder / "pictures", pictures=pictures)
    keys = {
        "model_name_or_path": str(folder / "model"),
        "protocol": "direct",
        "train_files": [str(write_jsonl(folder / "train.jsonl", data))],
        "eval_files": [str(write_jsonl(folder / "held_out.jsonl", data[:3]))],
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 8,
        "num_generations": 2,
        "max_steps": 2,
        "learning_rate": 1e-4,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "held_out_accuracy",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "rollout": {"max_turn_tokens": 6},
        "reward": {"rule": "answer", "reward_mode": "SubEM"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(keys))
    return folder / "recipe.yaml"


@pytest.mark.slow
def test_demonstrations_of_messages_are_learned_and_what_came_of_them_is_trained_on(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = yaml.safe_load(recipe.read_text())
    lines = [json.loads(line) for line in Path(keys["train_files"][0]).read_text().splitlines()]
    for line in lines:
        said = line["message"] if isinstance(line["message"], list) else json.loads(line["message"])
        line["messages"] = [*said, {"role": "assistant", "content": f"<answer>{line.pop('answer')}</answer>"}]
        del line["message"]
    bad = {"messages": [{"role": "user", "content": "who?"}]}
    file = write_jsonl(recipe.parent / "lessons.jsonl", [*lines, bad])
    options = {
        **{key: keys[key] for key in ("model_name_or_path", "protocol", "use_cpu", "bf16", "report_to")},
        **{"train_files": [str(file)], "eval_files": [str(file)], "max_steps": 8, "learning_rate": 0.02},
        **{"per_device_train_batch_size": 4, "logging_steps": 1, "output_dir": str(recipe.parent / "taught")},
        **{
            "lr_scheduler_type": "constant",
            "eval_strategy": "steps",
            "eval_steps": 4,
            "gradient_checkpointing": False,
        },
    }
    lessons = recipe.parent / "sft.yaml"
    lessons.write_text(yaml.safe_dump(options))
    assert main(["sft", "--config", str(lessons)]) == 1
    assert "lessons.jsonl, line 9: the last message is the user's, and a demonstration ends" in capsys.readouterr().err
    options["on_bad_row"] = "skip"
    lessons.write_text(yaml.safe_dump(options))
    assert main(["check", str(lessons)]) == 0
    assert "<answer>2</answer><|im_end|>" in capsys.readouterr().out
    assert main(["sft", "--config", str(lessons)]) == 0
    history = json.loads((recipe.parent / "taught" / "trainer_state.json").read_text())["log_history"]
    losses = [log["loss"] for log in history if "loss" in log]
    assert losses[-1] < losses[0] / 2 and any("eval_loss" in log for log in history)
    asked = ["what is 0 + 2?", "--model", str(recipe.parent / "taught"), "--config", str(recipe)]
    assert main(["ask", *asked]) == 0


def mentions(texts: Any) -> set[str]:
    """Words of searches in texts."""
    return set(re.findall(r"[\w/ ]*search[\w/ ]*", str(texts).replace("mmsearch", "").replace("MMSearch", ""), re.I))


@pytest.mark.slow
def test_a_run_without_tools_trains_and_says_nothing_of_searches(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", str(recipe)]) == 0
    run, printed = recipe.parent / "run", capsys.readouterr()
    assert "accuracy" in printed.out and mentions(printed.out) == set()
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    names = {name for log in history for name in log}
    assert {"reward/accuracy", "format/valid", "rollout/turns", "eval_held_out_accuracy"} <= names
    assert not {name for name in names if "search" in name or "tool" in name}
    [trained, *_] = [log for log in history if "loss" in log]
    assert trained["rollout/turns"] == 1.0 and trained["grad_norm"] == trained["grad_norm"]
    traces = list(read_traces(run))
    assert len(traces) == 2 * 8 + 2 * 3
    assert {(len(trace.turns), trace.outcome.searched) for trace in traces} == {(1, None)}
    assert all("searches" not in trace.rewards for trace in traces)
    prompts = ["".join(part for part in trace.prompt if isinstance(part, str)) for trace in traces]
    assert all(prompt.startswith(SYSTEM) for prompt in prompts)
    card = (run / "README.md").read_text()
    assert mentions(card) == set() and "DirectProtocol" in card and "| held_out | 3 |" in card
    assert main(["view", str(run)]) == 0 and main(["plot", str(run), "--out", str(run / "curve.svg")]) == 0
    assert "Trajectories that" not in (run / "curve.svg").read_text()


@pytest.mark.slow
def test_a_run_without_tools_is_checked_evaluated_and_asked(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = recipe.parent / "evaluated"
    assert main(["check", str(recipe), "--output_dir", str(out)]) == 0
    checked = capsys.readouterr().out
    assert SYSTEM in checked and mentions(checked) == set()
    assert main(["eval", "--config", str(recipe), "--output_dir", str(out)]) == 0
    assert mentions(capsys.readouterr().out) == set()
    summary = json.loads((out / "evaluation" / "summary.json").read_text())
    assert summary["data"]["held_out"]["overall"]["n"] == 3 and mentions(summary) == set()
    saved = json.loads((out / "evaluation" / "held_out_3.json").read_text())
    assert saved[0]["question"] == "what is 0 + 2?" and mentions(saved) == set()
    model = str(recipe.parent / "model")
    assert main(["ask", "who?", "--model", model, "--config", str(recipe), "--temperature", "1"]) == 0
    asked = capsys.readouterr().out
    assert re.search(r"\d+ tokens?, [\d.]+ s", asked) and mentions(asked) == set() and "call" not in asked
