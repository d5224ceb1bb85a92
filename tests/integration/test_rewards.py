"""Rewards of a recipe: LMM-R1's rule, a function of a file, a reward model, a reward server, and their weights."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small_lm
import torch
import yaml
from rewards_over_http import fake_server
from runs import write_jsonl
from search.over_http import free_port
from transformers import Qwen2ForSequenceClassification

from mmsearch_trl.commands.main import main
from mmsearch_trl.traces.files import read_traces


pytestmark = pytest.mark.slow

CODE = """
def reward_func(queries, prompts, labels):
    assert all(query.startswith("<|im_start|>user\\nwhat is ") for query in queries), queries[0]
    assert all("<|im_start|>assistant\\n" in query for query in queries) and set(labels) <= {"2", "[1, 2]"}
    return [len(query) / 1000 for query in queries]
"""
SECRET = "sk-0123456789abcdef0123"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe without tools on a small language model and eight questions."""
    folder = tmp_path_factory.mktemp("rewards")
    tokenizer = small_lm.build_tokenizer()
    model = small_lm.build_model(tokenizer)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    model.config.num_labels = 1
    Qwen2ForSequenceClassification(model.config).save_pretrained(folder / "judge")
    tokenizer.save_pretrained(folder / "judge")
    (folder / "my_reward.py").write_text(CODE)
    golds = ["2"] * 7 + ["[1, 2]"]
    rows = [
        {"message": [{"role": "user", "content": f"what is {number}?"}], "answer": gold}
        for number, gold in enumerate(golds)
    ]
    keys = {
        "model_name_or_path": str(folder / "model"),
        "protocol": "direct",
        "train_files": [str(write_jsonl(folder / "train.jsonl", rows))],
        "eval_files": [str(write_jsonl(folder / "held_out.jsonl", rows[:2]))],
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 8,
        "num_generations": 2,
        "max_steps": 1,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "rollout": {"max_turn_tokens": 6},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(keys))
    return folder / "recipe.yaml"


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    with fake_server(lambda body, number: (200, {"rewards": [2.0] * len(body["query"])})) as (url, asked):
        yield f"{url}?api_key={SECRET}", asked


def test_a_run_is_paid_the_weighted_sum_and_evaluated_by_it(recipe: Path, server: Any) -> None:
    folder, (url, asked) = recipe.parent, server
    keys = {
        "reward.compat": "lmm_r1",
        "reward.function": str(folder / "my_reward.py"),
        "reward.models": str(folder / "judge"),
        "reward.remote.url": url,
        "reward.overlong": "{max_tokens: 40, buffer: 40}",
        "reward_weights": "[1.0, 0.5, 10.0, 0.25, 2.0]",
    }
    words = [word for key, value in keys.items() for word in (f"--{key}", value)]
    assert main(["train", "--config", str(recipe), *words]) == 0
    run = folder / "run"
    log = json.loads((run / "trainer_state.json").read_text())["log_history"][0]
    names = ("math", "my_reward.reward_func", "judge", "remote", "overlong")
    rule, function, model, remote, overlong = (log[f"rewards/{name}/mean"] for name in names)
    assert rule == 0.0 and 0.01 < function < 1.0 and remote == 2.0 and model != 0.0 and -1 < overlong < 0
    assert log["reward"] == pytest.approx(0.5 * function + 10 * model + 0.25 * remote + 2 * overlong, abs=1e-4)
    assert log["reward/given_up"] == log["reward/accuracy"] == log["format/valid"] == 0.0
    assert not [name for name in log if "search" in name]
    trained = [trace.reward or 0.0 for trace in read_traces(run) if trace.split == "train"]
    assert len(trained) == 8 and sum(trained) / 8 == pytest.approx(log["reward"], abs=1e-4)
    assert sum(len(body["query"]) for body in asked) == 8 + 2, "two questions are evaluated at the end"
    written = "".join(path.read_text() for path in (*run.glob("*.yaml"), *run.glob("*.json"), *run.glob("*.md")))
    assert SECRET not in written and "/get_reward" in written and "rule math" in written
    out = folder / "evaluated"
    assert main(["eval", "--config", str(recipe), "--output_dir", str(out), *words]) == 0
    overall = json.loads((out / "evaluation" / "summary.json").read_text())["data"]["held_out"]["overall"]
    assert overall["n"] == 2 and sum(len(body["query"]) for body in asked) == 12


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"reward.function": "gone.py"}, "reward.function: there is no file gone.py"),
        ({"reward.models": "./gone"}, "reward.models: there is no folder ./gone"),
        ({"reward.remote.url": "http://127.0.0.1:{port}/get_reward"}, "127.0.0.1:{port}/get_reward is not there"),
        ({"reward.remote.urls": "x"}, "unknown key `reward.remote.urls`; did you mean `reward.remote.url`?"),
        ({"reward.overlong": "{max_tokens: 9000, buffer: 9}"}, "reward.overlong begins at 8991 tokens"),
        ({"reward_weights": "[1.0, 2.0]"}, "reward_weights holds 2 numbers, and there are 1 rewards"),
        ({"reward.rule": "none"}, "reward.rule is none, and neither function nor models nor remote"),
        ({"reward.search_penalty": "0.1"}, "reward.search_penalty is a key of protocol mmsearch_r1"),
    ],
)
def test_a_mistake_is_told_before_a_model_is_loaded(
    keys: dict[str, str],
    says: str,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("mmsearch_trl.train.load_start", lambda *given: pytest.fail("a model was loaded"))
    port = str(free_port())
    words = [word for key, value in keys.items() for word in (f"--{key}", value.replace("{port}", port))]
    out = str(recipe.parent / "refused")
    assert main(["train", "--config", str(recipe), "--output_dir", out, *words]) == 1
    assert says.replace("{port}", port) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "rule", "says"),
    [
        ("???", "math", "line 2: the answer '???' is no expression, number, option letter or word"),
        ("", "math", "line 2: the ground truth is empty"),
        ("???", "answer", "line 2: the answer '???' cannot be scored"),
    ],
)
def test_a_gold_answer_that_nothing_can_equal_is_told_with_file_and_row(
    answer: str, rule: str, says: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trained_on(answer, recipe, tmp_path, "--reward.rule", rule) == 1
    message = capsys.readouterr().err
    assert "bad.jsonl" in message and says in message


@pytest.mark.parametrize("keys", [("--reward.compat", "lmm_r1"), ("--reward.rule", "none", "--reward.function", "f")])
def test_where_no_gold_answer_is_needed_none_is_asked_for(
    keys: tuple[str, ...], recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "paid.py").write_text(
        "def reward_func(completions, **columns):\n    return [1.0] * len(completions)\n"
    )
    words = [str(tmp_path / "paid.py") if word == "f" else word for word in keys]
    assert trained_on("", recipe, tmp_path, *words, "--eval_files", str(recipe.parent / "held_out.jsonl")) == 0
    printed = capsys.readouterr().out
    assert "nan" not in printed and ("accuracy" in printed) == ("none" not in keys) and "held out" in printed


def trained_on(answer: str, recipe: Path, folder: Path, *words: str) -> int:
    """The exit status of training on four questions of which the second has this answer."""
    golds = ["2", answer, "A", "[1, 2]"]
    rows = [{"message": [{"role": "user", "content": "what is it?"}], "answer": gold} for gold in golds]
    data = str(write_jsonl(folder / "bad.jsonl", rows))
    out = str(folder / "run")
    options = ("--train_files", data, "--eval_files", "[]", "--output_dir", out)
    return main(["train", "--config", str(recipe), *options, *words])
