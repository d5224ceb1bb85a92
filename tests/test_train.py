"""The training script: a wrong input is one line before any model is loaded, and a run leaves what it promises."""

import json
import re
import resource
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
from runs import QUICK, grpo_arguments, write_jsonl

from mmsearch_trl import train
from mmsearch_trl.commands.main import main
from mmsearch_trl.core import versions
from mmsearch_trl.core.errors import EngineError
from mmsearch_trl.engine.transformers import TransformersEngine
from mmsearch_trl.evaluation.evaluator import Evaluator
from mmsearch_trl.recipe.command_line import recipe_arguments
from mmsearch_trl.recipe.recipe import load_recipe
from mmsearch_trl.search.imported import ImportedImageConfig
from mmsearch_trl.traces.files import TraceWriter, read_traces


pytestmark = pytest.mark.slow


def refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What `mmsearch train` says: one line, exit status 1, and no model was loaded."""

    def load_start(*given: object) -> NoReturn:
        pytest.fail("a model was loaded")

    monkeypatch.setattr(train, "load_start", load_start)
    capsys.readouterr()
    assert main(["train", *arguments]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmsearch: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("mmsearch: error: ")


def some_rows(home: Path, count: int, name: str = "train") -> list[dict[str, Any]]:
    """Rows of the world's data with absolute paths of their images."""
    lines = (home / "world" / f"{name}.jsonl").read_text().splitlines()[:count]
    return [row | {"image": str(home / "world" / row["image"])} for row in map(json.loads, lines)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"learning_rat": 1e-5}, "unknown key `learning_rat`; did you mean `learning_rate`?"),
        ({"rollout.max_turn": 2}, "unknown key `rollout.max_turn`; did you mean `rollout.max_turns`?"),
        ({"train_files": "gone.jsonl"}, "train_files: data file not found: gone.jsonl"),
        ({"model_name_or_path": "./gone"}, "model_name_or_path: there is no folder ./gone"),
        ({"search.image.path": "gone"}, "search.image.path: gone does not exist"),
        ({"num_generations": 7}, "num_generations 7 does not divide the generation batch of 128"),
        ({"rollout.max_turns": 0}, "rollout.max_turns must be at least 1, got 0"),
    ],
)
def test_a_mistake_in_the_recipe_is_one_line_before_a_model_is_loaded(
    overrides: dict[str, Any],
    message: str,
    world_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = grpo_arguments(world_home, tmp_path / "run", **overrides)
    assert message in refused(arguments, monkeypatch, capsys)


def test_a_search_prompt_without_searches_is_refused(
    world_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{image} {question} You may write <search><img></search> to look the image up.")
    overrides = {"first_turn_prompt": prompt, "rollout.image_search_limit": 0}
    message = refused(grpo_arguments(world_home, tmp_path / "run", **overrides), monkeypatch, capsys)
    assert "the first prompt offers image search (<search><img></search>), but" in message
    assert "rollout.image_search_limit is 0" in message


def test_an_unreadable_image_is_named_by_file_and_row(
    world_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = some_rows(world_home, 4)
    (tmp_path / "torn.png").write_bytes(Path(rows[2]["image"]).read_bytes()[:40])
    rows[2]["image"] = "torn.png"
    file = write_jsonl(tmp_path / "data.jsonl", rows)
    arguments = grpo_arguments(world_home, tmp_path / "run", train_files=file)
    assert f"{file}, line 3: unreadable image: " in refused(arguments, monkeypatch, capsys)


def test_a_library_out_of_range_is_named_with_the_tested_version(
    world_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = versions.version
    monkeypatch.setattr(versions, "version", lambda name: "1.20.0" if name == "trl" else installed(name))
    message = refused(grpo_arguments(world_home, tmp_path / "run"), monkeypatch, capsys)
    assert "trl 1.20.0 is installed, but >=1.16,<1.17 is needed" in message
    assert "Tested versions: trl 1.16.0" in message


def test_training_does_not_start_from_an_adapter(
    world_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    for file in (world_home / "model").iterdir():
        if "weights" not in file.name and "safetensors" not in file.name:
            (tmp_path / "adapter" / file.name).write_bytes(file.read_bytes())
    arguments = grpo_arguments(world_home, tmp_path / "run", model_name_or_path=tmp_path / "adapter")
    assert main(["train", *arguments]) == 1
    assert "is a LoRA adapter, and training starts from a whole model: set from_adapter" in capsys.readouterr().err


@pytest.fixture(scope="module")
def run(world_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    data = write_jsonl(out.parent / f"{out.name}.jsonl", some_rows(world_home, 3))
    options = QUICK | {"eval_files": data, "hub_token": "hf_secret", "report_to": "none"}
    options |= {"run_name": "https://user:url-secret@tracker.example/?api_key=query-secret", "save_strategy": "steps"}
    options |= {"save_steps": 1, "search.denied_hosts": "[https://user:host-secret@answers.example]"}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_TOKEN", "")
        assert main(["train", *grpo_arguments(world_home, out, **options)]) == 0
    return out


def test_a_backend_of_ones_own_answers_in_training(
    world_home: Path, taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "their_images.py").write_text(
        "from mmsearch_trl.core.observation import ImageHit\n\n\nasync def look(query, k, *, title):\n"
        "    return [ImageHit(title=f'{title} of {query.image.width} pixels')] * k\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    data = write_jsonl(tmp_path / "few.jsonl", some_rows(world_home, 2, "known"))
    options = QUICK | {"model_name_or_path": taught, "train_files": data, "search.image.backend": "their_images:look"}
    options |= {"search.image.title": "their emblem", "search.image.top_k": 1}
    arguments = grpo_arguments(world_home, tmp_path / "run", **options)
    arguments = [word for word in arguments if not word.startswith("--search.image.path")]
    assert main(["train", *arguments]) == 0
    traces = "".join(path.read_text() for path in (tmp_path / "run" / "traces").glob("*.jsonl"))
    assert "their emblem of 56 pixels" in traces
    assert load_recipe(tmp_path / "run" / "recipe.yaml").search.image == ImportedImageConfig(
        backend="their_images:look", arguments={"title": "their emblem"}, top_k=1
    )
    message = refused([*arguments, "--search.image.titel=1"], monkeypatch, capsys)
    assert "search.image.titel: their_images:look takes no `titel`; did you mean `title`?" in message


def test_an_engine_that_cannot_work_ends_a_run_with_the_first_reason(
    world_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(self: TransformersEngine, *given: object) -> None:
        raise EngineError("OutOfMemoryError: CUDA out of memory")

    monkeypatch.setattr(TransformersEngine, "generate", broken)
    assert main(["train", *grpo_arguments(world_home, tmp_path / "run", **QUICK)]) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmsearch: error: ")]
    assert "training ended early: none of the last 4 rollouts worked; the first: OutOfMemoryError: CUDA" in line
    assert "no step is saved" in line
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_retriever_that_is_not_there_is_told_before_the_model_is_loaded(
    world_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "load_start", lambda *given: pytest.fail("a model was loaded"))
    options = {"search.text.backend": "retriever", "search.text.url": "http://127.0.0.1:9", "search.text.top_k": 3}
    arguments = grpo_arguments(world_home, tmp_path / "run", **options)
    assert main(["train", *(word for word in arguments if not word.startswith("--search.text.path"))]) == 1
    assert "the search backend retriever cannot be used: " in capsys.readouterr().err


def test_a_run_leaves_model_recipe_environment_card_and_traces(run: Path) -> None:
    for name in ("model.safetensors", "tokenizer.json", "environment.json", "README.md", "trainer_state.json"):
        assert (run / name).stat().st_size > 0
    splits = [record.split for record in read_traces(run)]
    assert splits.count("train") == 4
    assert len(splits) == 4 + 3
    (rows,) = (run / "evaluation").glob("*.json")
    assert len(json.loads(rows.read_text())) == 3


def test_the_recorded_recipe_is_the_one_that_ran(run: Path) -> None:
    recipe = load_recipe(run / "recipe.yaml", {"run_name": "again", "search.denied_hosts": []})  # they held secrets
    assert recipe.trainer.max_steps == 1
    assert recipe.search.image is not None and recipe.search.image.top_k == 3


def test_a_run_folder_holds_no_token_and_keeps_the_data_from_the_hub(run: Path) -> None:
    files = [file for file in run.rglob("*") if file.is_file()]
    names = {file.name for file in files}
    assert names >= {"recipe.yaml", "training_args.bin", "README.md", "environment.json", "trainer_state.json"}
    assert {"checkpoint-1", "traces"} <= {file.parent.name for file in files}
    secrets = (b"hf_secret", b"url-secret", b"query-secret", b"host-secret")
    assert not [(file, secret) for file in files for secret in secrets if secret in file.read_bytes()]
    assert "run_name: https://<redacted>@tracker.example/?api_key=<redacted>" in (run / "recipe.yaml").read_text()
    assert (run / ".gitignore").read_text().split() == ["traces/", "evaluation/"]


def test_a_run_ends_with_what_to_type_next_and_that_works(
    world_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = write_jsonl(tmp_path / "known.jsonl", some_rows(world_home, 2, "known"))
    out = tmp_path / "my run"
    assert main(["train", *grpo_arguments(world_home, out, **(QUICK | {"eval_files": known}))]) == 0
    printed = capsys.readouterr()
    assert f"saved: {out}\n" in printed.out and "eval_known" in printed.err, "a bar over the evaluation"
    commands = [line.partition(": mmsearch ")[2] for line in printed.out.splitlines() if ": mmsearch " in line]
    assert [command.split()[0] for command in commands] == ["view", "eval"]
    for command in commands:
        assert main(shlex.split(command)) == 0, command
    assert (out / "trajectories.html").is_file() and (out / "evaluation" / "summary.json").is_file()
    [then] = [line for line in capsys.readouterr().out.splitlines() if "to read what it did: mmsearch " in line]
    assert main(shlex.split(then.partition(": mmsearch ")[2])) == 0


@pytest.mark.parametrize(
    "strategy",
    [{}, {"eval_strategy": "steps", "eval_steps": 2}, {"eval_strategy": "epoch"}],
    ids=lambda keys: keys.get("eval_strategy", "none"),
)
def test_the_last_step_is_evaluated_once(
    strategy: dict[str, Any], world_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[int] = []
    run = Evaluator.run

    def counting(self: Evaluator, evaluation: Any, *arguments: Any) -> Any:
        evaluated.append(evaluation.step)
        return run(self, evaluation, *arguments)

    monkeypatch.setattr(Evaluator, "run", counting)
    data = write_jsonl(tmp_path / "few.jsonl", some_rows(world_home, 3))
    options = QUICK | {"train_files": data, "eval_files": data, "max_steps": 1} | strategy
    assert main(["train", *grpo_arguments(world_home, tmp_path / "run", **options)]) == 0
    assert evaluated == [1]
    assert [record.split for record in read_traces(tmp_path / "run")].count("eval_few") == 3


def test_the_best_model_is_evaluated_though_the_last_step_was(world_home: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "few.jsonl", some_rows(world_home, 2))
    options = QUICK | {"eval_files": data, "max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    options |= {"save_strategy": "steps", "load_best_model_at_end": "true", "metric_for_best_model": "eval_few_reward"}
    recipe = load_recipe(*recipe_arguments(grpo_arguments(world_home, tmp_path / "run", **options)))
    trainer = train.train(recipe)
    evaluated = [log["step"] for log in trainer.state.log_history if "eval_few_accuracy" in log]
    assert evaluated == [1, 2] if trainer.state.best_global_step == 2 else [1, 2, 2]


def test_a_disk_that_is_full_for_a_while_costs_traces_and_not_the_run(
    world_home: Path, taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written = TraceWriter.write
    full = iter([True, False, False])

    def write(writer: TraceWriter, batch: Any, **options: Any) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if next(full):
            resource.setrlimit(resource.RLIMIT_FSIZE, (writer.size + 100, limits[1]))
        try:
            written(writer, batch, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(TraceWriter, "write", write)
    data = write_jsonl(tmp_path / "few.jsonl", some_rows(world_home, 4))
    options = QUICK | {"model_name_or_path": taught, "train_files": data, "max_steps": 3}
    assert main(["train", *grpo_arguments(world_home, tmp_path / "run", **options)]) == 0
    assert "Step 0: 4 trajectories are not recorded, and training goes on: " in caplog.text
    assert sorted({record.step for record in read_traces(tmp_path / "run")}) == [1, 2]
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_the_flags_that_messages_advise_do_what_they_say(
    world_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second run is refused; it goes on, or removes the first, with the words of that message."""
    out = tmp_path / "run"
    arguments = grpo_arguments(world_home, out, **(QUICK | {"save_strategy": "steps", "save_steps": 1}))
    assert main(["train", *arguments]) == 0
    with monkeypatch.context() as patch:
        message = refused(arguments, patch, capsys)
    assert "holds a run already (checkpoint-1)" in message
    flags = re.findall(r"--\w+(?: auto)?", message)
    assert flags == ["--resume_from_checkpoint auto", "--overwrite_output_dir"]
    for flag, saved in (*((flag, True) for flag in (flags[0], "--resume_from_checkpoint")), (flags[1], False)):
        (out / "checkpoint-1" / "mine").touch()
        assert main(["train", *arguments, *flag.split()]) == 0, flag
        assert (out / "checkpoint-1" / "mine").exists() is saved, flag
    assert not {"overwrite_output_dir", "resume_from_checkpoint"} & load_recipe(out / "recipe.yaml").values.keys()
