"""In a notebook an event loop is running already, and everything that is called from a cell works in it."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import QUICK, grpo_arguments, write_jsonl
from test_train import some_rows

from mmsearch_trl import evaluate, train
from mmsearch_trl.commands.main import main
from mmsearch_trl.recipe.command_line import recipe_arguments
from mmsearch_trl.recipe.finding import Level
from mmsearch_trl.recipe.preflight import Preflight
from mmsearch_trl.recipe.recipe import load_recipe
from mmsearch_trl.rollout.background_loop import BackgroundLoop, run_to_end


def in_a_cell(work: Callable[[], Any]) -> Any:
    async def cell() -> Any:
        return work()

    return asyncio.run(cell())


async def _answer() -> int:
    await asyncio.sleep(0)
    return 42


async def _fail() -> None:
    raise KeyError("x")


def test_a_coroutine_runs_to_its_end_with_and_without_a_running_loop() -> None:
    assert run_to_end(_answer()) == in_a_cell(lambda: run_to_end(_answer())) == 42
    assert in_a_cell(lambda: BackgroundLoop().run(_answer())) == 42
    for run in (lambda: run_to_end(_fail()), lambda: in_a_cell(lambda: run_to_end(_fail()))):
        with pytest.raises(KeyError, match="x"):
            run()


def test_searching_checking_and_filling_a_cache(
    world_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ["--text.backend", "bm25", "--text.path", str(world_home / "world" / "text_index")]
    assert in_a_cell(lambda: main(["search", "a city", *keys])) == 0
    options = {"train_files": write_jsonl(tmp_path / "train.jsonl", some_rows(world_home, 60)), "eval_files": "[]"}
    options |= {"search.cache": tmp_path / "cache"}
    arguments = grpo_arguments(world_home, tmp_path / "out", **options)
    assert in_a_cell(lambda: main(["cache", "prefetch", *arguments])) == 0
    assert "looked up" in capsys.readouterr().out
    recipe = load_recipe(*recipe_arguments(arguments))
    assert {each.level for each in in_a_cell(lambda: list(Preflight(recipe).findings()))} == {Level.OK}


@pytest.mark.slow
def test_training_and_evaluating(world_home: Path, taught: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "known.jsonl", some_rows(world_home, 4, "known"))
    options = QUICK | {"model_name_or_path": taught, "train_files": data, "eval_files": data}
    path, values = recipe_arguments(grpo_arguments(world_home, tmp_path / "run", **options))

    def build_and_collect() -> int:
        trainer = train.build_trainer(load_recipe(path, values))
        rows = [trainer.train_dataset[0]] * 2
        collection = trainer.collector.collect(rows, trainer.policy, trainer.state, trainer.train_dataset)
        trainer.close()
        return len(collection.batch.trajectories)

    assert in_a_cell(build_and_collect) == 2
    in_a_cell(lambda: train.main(path, values))
    assert (tmp_path / "run" / "model.safetensors").is_file()
    in_a_cell(lambda: evaluate.main(path, {**values, "model_name_or_path": str(tmp_path / "run")}))
    assert (tmp_path / "run" / "evaluation" / "summary.json").is_file()
