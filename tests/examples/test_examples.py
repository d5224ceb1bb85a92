"""The examples run as they are."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_training_without_a_recipe(tmp_path: Path) -> None:
    main = runpy.run_path(str(EXAMPLES / "train_without_a_recipe.py"))["main"]
    trainer = main(["--out", str(tmp_path), "--steps", "2"])
    assert trainer.state.global_step == 2
    assert (tmp_path / "run" / "traces" / "train-rank0.jsonl").read_text().count("\n") == 16


def test_the_notebook_reads_a_trajectory(capsys: pytest.CaptureFixture[str]) -> None:
    cells = json.loads((EXAMPLES / "read_a_trajectory.ipynb").read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells), "the notebook is kept without outputs"
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "read_a_trajectory.ipynb", "exec"), names)
    assert names["trajectory"].stop == "answered" and names["reward"].accuracy == 1.0
    assert "found:" in capsys.readouterr().out
