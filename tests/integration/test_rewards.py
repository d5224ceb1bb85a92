"""Rewards of a recipe beside the protocol's rule: a function of a file, a reward server, and their weights."""

import json
from pathlib import Path
from typing import Any

import pytest
from rewards_over_http import fake_server
from runs import QUICK, grpo_arguments
from search.over_http import free_port

from mmsearch_trl.commands.main import main
from mmsearch_trl.traces.files import read_traces


pytestmark = pytest.mark.slow

CODE = """
def reward_func(queries, prompts, labels):
    assert all(query.startswith("<|im_start|>") and "<|image_pad|>" in query for query in queries)
    return [len(query) / 1000 for query in queries]
"""


@pytest.fixture
def function(tmp_path: Path) -> str:
    (tmp_path / "my_reward.py").write_text(CODE)
    return str(tmp_path / "my_reward.py")


def test_a_run_is_paid_the_weighted_sum(world_home: Path, tmp_path: Path, function: str) -> None:
    out = tmp_path / "run"
    with fake_server(lambda body, number: (200, {"rewards": [2.0] * len(body["query"])})) as (url, asked):
        options: dict[str, Any] = {
            **QUICK,
            "reward.function": function,
            "reward.remote.url": f"{url}?api_key=sk-0123456789abcdef0123",
            "reward.overlong": "{max_tokens: 40, buffer: 40}",
            "reward_weights": "[1.0, 0.5, 0.25, 2.0]",
            "logging_steps": 1,
        }
        assert main(["train", *grpo_arguments(world_home, out, **options)]) == 0
    assert sum(len(body["query"]) for body in asked) == 4
    log = json.loads((out / "trainer_state.json").read_text())["log_history"][0]
    rule, of_file, remote = (log[f"rewards/{name}/mean"] for name in ("mmsearch", "my_reward.reward_func", "remote"))
    overlong = log["rewards/overlong/mean"]
    assert remote == 2.0 and of_file > 0.1 and -1 < overlong < 0
    assert log["reward"] == pytest.approx(rule + 0.5 * of_file + 0.25 * remote + 2 * overlong, abs=1e-4)
    totals = [trace.reward or 0.0 for trace in read_traces(out)]
    assert len(totals) == 4 and sum(totals) / 4 == pytest.approx(log["reward"], abs=1e-4)
    written = "".join(path.read_text() for path in (*out.glob("*.yaml"), *out.glob("*.json"), *out.glob("*.md")))
    assert "sk-0123456789" not in written and "/get_reward" in written


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"reward.function": "gone.py"}, "reward.function: there is no file gone.py"),
        ({"reward.models": "./gone"}, "reward.models: there is no folder ./gone"),
        ({"reward.remote.url": "http://127.0.0.1:{port}/get_reward"}, "127.0.0.1:{port}/get_reward is not there"),
        ({"reward.remote.urls": "x"}, "unknown key `reward.remote.urls`; did you mean `reward.remote.url`?"),
        ({"reward.overlong": "{max_tokens: 9000, buffer: 9}"}, "reward.overlong begins at 8991 tokens"),
        ({"reward_weights": "[1.0, 2.0]"}, "reward_weights holds 2 numbers, and there are 1 rewards"),
    ],
)
def test_a_mistake_is_told_before_a_model_is_loaded(
    keys: dict[str, str],
    says: str,
    world_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("mmsearch_trl.train.load_start", lambda *given: pytest.fail("a model was loaded"))
    port = str(free_port())
    given = {key: value.replace("{port}", port) for key, value in keys.items()}
    assert main(["train", *grpo_arguments(world_home, tmp_path / "run", **QUICK, **given)]) == 1
    assert says.replace("{port}", port) in capsys.readouterr().err
