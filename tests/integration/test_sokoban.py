"""Levels of Sokoban from the command that writes them to a policy that is paid for playing them."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from mmsearch_trl.commands.main import main
from mmsearch_trl.rewards import sokoban
from mmsearch_trl.sokoban.level import Level
from mmsearch_trl.traces.files import read_traces


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sokoban")
    assert main(["data", "sokoban", str(folder / "levels"), "--levels", "4"]) == 0
    family = tiny.qwen3()
    family.model().save_pretrained(folder / "model")
    family.processor.save_pretrained(folder / "model")
    keys: dict[str, Any] = {
        "model_name_or_path": str(folder / "model"),
        "protocol": "direct",
        "train_files": [str(folder / "levels")],
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 8,
        "num_generations": 2,
        "max_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "freeze_vision": True,
        "rollout": {"max_turn_tokens": 6},
        "reward": {"rule": "sokoban"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(keys))
    return folder / "recipe.yaml"


@pytest.mark.slow
def test_a_policy_is_paid_for_playing_its_own_level(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an untrained model writes is no move: it is taken for one, so that its level is played."""
    played: list[str] = []

    def play(moves: object, level: Level) -> tuple[float, bool]:
        played.append(level.written())
        return 3.0, False

    monkeypatch.setattr(sokoban, "moves_of", lambda turn: ["up"])
    monkeypatch.setattr(sokoban, "play", play)
    assert main(["train", "--config", str(recipe)]) == 0
    records = list(read_traces(recipe.parent / "run"))
    rows = [json.loads(line) for line in (recipe.parent / "levels" / "levels.jsonl").read_text().splitlines()]
    assert sorted(played) == sorted(2 * [row["level"] for row in rows])
    assert [record.reward for record in records] == pytest.approx([3.55] * 8)
    assert all("You play Sokoban." in str(record.prompt) and record.images for record in records)


def test_a_row_without_a_level_is_named_before_a_model_is_loaded(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (recipe.parent / "levels" / "levels.jsonl").read_text().splitlines()]
    assert all(Level.read(row["level"]).written() == row["level"] for row in rows)
    rows[2]["level"] = "#####"
    bad = tmp_path / "bad.jsonl"
    for row in rows:
        row["messages"][1]["content"] = "play"
    bad.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["check", str(recipe), "--train_files", f"[{bad}]"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "bad.jsonl" in said and "line 3: `level`: a Sokoban level" in said
