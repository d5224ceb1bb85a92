"""`mmsearch stages`: one run after the other, each from what the former exported."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from chaos.test_kill import KILL
from forks import Forks
from runs import grpo_arguments, lessons, sft_arguments, write_jsonl
from safetensors.torch import load_file, save_file

from mmsearch_trl.commands.main import main
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.recipe.command_line import recipe_arguments
from mmsearch_trl.recipe.layers import Layers
from mmsearch_trl.recipe.stage_list import read_stages
from mmsearch_trl.stages import run_stages


def recipe(file: Path, extends: str, **keys: Any) -> Path:
    file.write_text(yaml.safe_dump({"extends": extends} | keys))
    return file


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Two recipes of the world, which are never run."""
    for name in ("first", "second"):
        recipe(tmp_path / f"{name}.yaml", "world/grpo", output_dir=str(tmp_path / name))
    return [tmp_path / "first.yaml", tmp_path / "second.yaml"]


def export(folder: Path, *, adapter: bool = False) -> None:
    """What a finished run leaves, in miniature."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "trainer_state.json").write_text("{}")
    if adapter:
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base"}))
    save_file({"weight": torch.zeros(2)}, folder / f"{'adapter_model' if adapter else 'model'}.safetensors")


class Played:
    """Stands for the processes of the stages: each exports something at once, or ends as it is told to."""

    def __init__(self, *statuses: int, adapter: bool = False) -> None:
        self.ran: list[Sequence[str]] = []
        self._statuses, self._adapter = list(statuses), adapter

    def __call__(self, words: Sequence[str]) -> int:
        self.ran.append(words)
        status = self._statuses.pop(0) if self._statuses else 0
        if status == 0:
            layers = Layers()
            layers.add_file(Path(words[2]))
            export(Path(layers.values["output_dir"]), adapter=self._adapter)
        return status

    @property
    def names(self) -> list[str]:
        return [Path(words[2]).stem for words in self.ran]

    def keys(self, number: int) -> dict[str, Any]:
        return yaml.safe_load(Path(self.ran[number][2]).read_text())


def play(files: Sequence[Path], played: Callable[[Sequence[str]], int], folder: Path, **keys: Any) -> None:
    run_stages(read_stages(files, {"output_dir": str(folder)} | keys), played)


def test_each_stage_starts_from_what_the_former_exported(two: list[Path], tmp_path: Path) -> None:
    played = Played()
    play(two, played, tmp_path / "all", **{"second.learning_rate": 1e-6, "second.rollout.max_turns": 2})
    assert [list(words[:2]) for words in played.ran] == [["train", "--config"]] * 2
    assert played.names == ["1-first", "2-second"]
    assert "model_name_or_path" not in played.keys(0)
    keys = played.keys(1)
    assert (keys["model_name_or_path"], keys["resume_from_checkpoint"]) == (str(tmp_path / "first"), "auto")
    assert (keys["learning_rate"], keys["rollout"]) == (1e-6, {"max_turns": 2})
    record = json.loads((tmp_path / "all" / "stages.json").read_text())["stages"]
    assert [(each["stage"], each["status"], each["output_dir"]) for each in record] == [
        ("first", "done", str(tmp_path / "first")),
        ("second", "done", str(tmp_path / "second")),
    ]
    assert record[1]["started_from"] == str(tmp_path / "first")


def test_what_is_done_is_not_done_again_and_what_was_open_goes_on(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        UserError, match="stage 2 of 2, second was ended by signal 9: the same command goes on with it"
    ):
        play(two, Played(0, -9), tmp_path / "all")
    again = Played()
    play(two, again, tmp_path / "all")
    assert again.names == ["2-second"]
    assert f"stage 1 of 2, first: done, in {tmp_path / 'first'}" in capsys.readouterr().out
    never = Played()
    play(two, never, tmp_path / "all")
    assert never.ran == []


def test_a_stage_that_was_run_by_itself_is_done(two: list[Path], tmp_path: Path) -> None:
    export(tmp_path / "first")
    played = Played()
    play(two, played, tmp_path / "all")
    assert played.names == ["2-second"]


def test_a_stage_that_outlives_its_command_is_waited_for(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command was killed; its stage saves a second longer."""
    sleeping: list[subprocess.Popen[bytes]] = []

    def killed(words: Sequence[str]) -> int:
        sleeping.append(subprocess.Popen(["sleep", "2"], close_fds=False))
        return -9

    with pytest.raises(UserError):
        play(two, killed, tmp_path / "all")
    played = Played()
    play(two, played, tmp_path / "all")
    assert sleeping[0].poll() == 0 and played.names == ["1-first", "2-second"]
    assert "waiting for it to end" in capsys.readouterr().out


def test_a_stage_that_fails_ends_the_command_with_its_status(two: list[Path], tmp_path: Path) -> None:
    for status in (1, 130, 143):
        with pytest.raises(SystemExit) as ended:
            play(two, Played(status), tmp_path / f"all-{status}")
        assert ended.value.code == status


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: (out / "model.safetensors").unlink(), "holds no weights"),
        (lambda out: (out / "config.json").unlink(), "holds no config.json"),
        (lambda out: (out / "model.safetensors").write_bytes(b"\x10"), "model.safetensors is not whole"),
        (
            lambda out: (out / "model.safetensors").write_bytes((out / "model.safetensors").read_bytes()[:-3]),
            "is not whole",
        ),
        (lambda out: out.rename(out.with_name("gone")), "there is no folder"),
        (
            lambda out: (out / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}'),
            "missing",
        ),
    ],
)
def test_an_export_that_is_not_whole_is_told_before_the_next_stage_is_begun(
    damage: Callable[[Path], Any], message: str, two: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError):
        play(two, Played(0, -9), tmp_path / "all")
    damage(tmp_path / "first")
    never = Played()
    with pytest.raises(UserError, match=message) as refused:
        play(two, never, tmp_path / "all")
    assert never.ran == [] and "first" in str(refused.value) and "\n" not in str(refused.value)


def test_a_stage_without_an_export_is_no_stage_that_ended(two: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stage 1 of 2, first: it ended, and its export is not whole"):
        play(two, lambda words: 0, tmp_path / "all")


@pytest.mark.parametrize(
    ("keys", "way", "said"),
    [
        ({"second.use_peft": True}, "continue", "a LoRA adapter that is trained on (from_adapter: continue)"),
        ({}, "merge", "merged into its base model (from_adapter: merge); the reference"),
        ({"second.use_peft": True, "second.from_adapter": "merge"}, "merge", "merged into its base model"),
    ],
)
def test_what_becomes_of_an_adapter_is_said(
    keys: dict[str, Any], way: str, said: str, two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    played = Played(adapter=True)
    play(two, played, tmp_path / "all", **keys)
    assert played.keys(1)["from_adapter"] == way
    assert said in capsys.readouterr().out


def test_a_done_stage_with_other_keys_is_not_passed_for_it(two: list[Path], tmp_path: Path) -> None:
    play(two, Played(), tmp_path / "all")
    (tmp_path / "first" / "recipe.yaml").write_text(yaml.safe_dump(read_stages(two, {}).stages[0].values))
    play(two, Played(), tmp_path / "all")
    with pytest.raises(
        UserError, match=r"stage first is done in .*, with other keys than now \(learning_rate, rollout\)"
    ):
        play(two, Played(), tmp_path / "all", **{"first.learning_rate": 1.0, "first.rollout.max_turns": 1})


def test_a_mistake_in_the_last_stage_is_told_before_the_first_begins(two: list[Path], tmp_path: Path) -> None:
    played = Played()
    with pytest.raises(UserError, match="unknown key `learning_rat`"):
        play(two, played, tmp_path / "all", **{"second.learning_rat": 1})
    assert played.ran == []


def stages_file(folder: Path, *stages: Any, **keys: Any) -> Path:
    file = folder / "stages.yaml"
    file.write_text(yaml.safe_dump({"stages": list(stages)} | keys))
    return file


def test_one_file_names_stages_with_their_keys_and_launch(two: list[Path], tmp_path: Path) -> None:
    file = stages_file(
        tmp_path,
        {"name": "warm", "recipe": "world/sft", "output_dir": str(tmp_path / "warm"), "num_processes": 1},
        {"name": "fre", "recipe": "first.yaml", "accelerate": "fsdp2", "rollout": {"max_turns": 2}},
        {"recipe": "second.yaml"},
        output_dir=str(tmp_path / "all"),
    )
    played = Played()
    run_stages(read_stages([file], {}), played)
    assert played.names == ["1-warm", "2-fre", "3-second"]
    assert [words[0] for words in played.ran] == ["sft", "train", "train"]
    assert [list(words[3:]) for words in played.ran] == [["--num_processes", "1"], ["--accelerate", "fsdp2"], []]
    assert played.keys(1)["rollout"] == {"max_turns": 2}
    assert played.keys(1)["model_name_or_path"] == str(tmp_path / "warm")


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "must be a list of at least one stage"),
        ([{"name": "a"}], "stage 1: a stage is a mapping with `recipe`"),
        ([{"recipe": "gone.yaml"}], "stage 1: recipe not found: gone.yaml"),
        ([{"recipe": "world/sft", "name": "a b"}], "`name` is a word"),
        ([{"recipe": "world/sft"}, {"recipe": "world/sft"}], "two stages have one name"),
        ([{"recipe": "world/sft", "kind": "dpo"}], "`kind` must be one of grpo, sft, got 'dpo'"),
        ([{"recipe": "world/sft", "num_processes": 0}], "`num_processes` must be a whole number"),
        ([{"recipe": "world/sft", "accelerate": "zero9"}], "accelerate configuration not found: zero9"),
        (
            [{"recipe": "world/sft", "overwrite_output_dir": True}],
            "overwrite_output_dir: a stage that was begun goes on",
        ),
        ([{"recipe": "world/sft", "resume_from_checkpoint": "x"}], "resume_from_checkpoint: each stage goes on"),
        (
            [{"recipe": "world/sft"}, {"recipe": "world/grpo", "model_name_or_path": "m"}],
            "stage 2, grpo: model_name_or_path: it starts from what the former stage exported",
        ),
        (
            [{"recipe": "world/sft"}, {"recipe": "world/grpo", "output_dir": "runs/demo/warm_start"}],
            "stage grpo: its output_dir runs/demo/warm_start is that of stage sft, too",
        ),
    ],
)
def test_what_a_file_of_stages_may_not_say(stages: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        read_stages([stages_file(tmp_path, *stages)], {})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name the recipes in their order"),
        (
            ["world/sft", "world/grpo", "--learning_rate", "1"],
            "a key of one stage is written --STAGE.key, and the stages are sft, grpo",
        ),
        (["world/sft", "--stf.learning_rate", "1"], "did you mean `sft`?"),
        (["world/sft", "gone"], "recipe not found: gone"),
    ],
)
def test_what_the_command_may_not_say(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["stages", *words]) == 1
    assert message in capsys.readouterr().err


KEYS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_steps": 2,
    "save_strategy": "steps",
    "save_steps": 1,
    "logging_steps": 1,
    "temperature": 2.0,  # what was learned by heart is said alike, and there would be no gradient
    "eval_files": [],
}


def from_arguments(file: Path, arguments: list[str], **keys: Any) -> Path:
    """A recipe with the keys of a command line."""
    path, values = recipe_arguments(arguments)
    layers = Layers()
    layers.add_keys(values | keys)
    return recipe(file, str(path), **yaml.safe_load(json.dumps(layers.values, default=str)))


def three(home: Path, taught: Path, folder: Path) -> Path:
    """SFT, GRPO with an adapter, and GRPO that trains this adapter on."""
    folder.mkdir()
    rows = write_jsonl(home / "world" / "taught_again.jsonl", lessons(home / "world"))
    lora = {"use_peft": True, "lora_r": 2, "lora_dropout": 0.0, "lora_target_modules": ["q_proj", "v_proj"]}
    sft = sft_arguments(home, folder / "sft", model_name_or_path=taught, train_files=rows, max_steps=1)
    grpo = grpo_arguments(home, folder / "fre")
    more = KEYS | {"freeze_vision": False, "learning_rate": 1e-2, "beta": 0.1}
    from_arguments(folder / "sft.yaml", sft)
    from_arguments(folder / "fre.yaml", grpo, **more, **lora)
    from_arguments(folder / "mgt.yaml", grpo, **more, **lora, output_dir=str(folder / "mgt"))
    return stages_file(
        folder, *({"recipe": f"{name}.yaml"} for name in ("sft", "fre", "mgt")), output_dir=str(folder / "all")
    )


@pytest.mark.slow
def test_three_stages_killed_in_the_last_end_as_the_uninterrupted_ones(
    forks: Forks, world_home: Path, taught: Path, tmp_path: Path
) -> None:
    def played(plants: dict[str, str]) -> Callable[[Sequence[str]], int]:
        def run(words: Sequence[str]) -> int:
            plant = KILL + plants[Path(words[2]).stem] if Path(words[2]).stem in plants else ""
            done = forks.run(f"mmsearch_trl.{words[0]}", *words[1:], folder=tmp_path, plant=plant)
            assert done.status in (0, -9), done.err
            return done.status

        return run

    whole, killed = three(world_home, taught, tmp_path / "whole"), three(world_home, taught, tmp_path / "killed")
    run_stages(read_stages([whole], {}), played({}))
    with pytest.raises(UserError, match="stage 3 of 3, mgt was ended by signal 9"):
        run_stages(read_stages([killed], {}), played({"3-mgt": "before(Trainer, '_clip_grad_norm', 2)"}))
    run_stages(read_stages([killed], {}), played({}))
    for stage in ("fre", "mgt"):
        found, wanted = (
            load_file(tmp_path / each / stage / "adapter_model.safetensors") for each in ("killed", "whole")
        )
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    moved = load_file(tmp_path / "whole" / "fre" / "adapter_model.safetensors")
    assert any(not torch.equal(moved[name], wanted[name]) for name in wanted), "the last stage learned something"
    record = json.loads((tmp_path / "killed" / "all" / "stages.json").read_text())["stages"]
    assert [each["status"] for each in record] == ["done"] * 3
    assert record[2]["from_adapter"] == "continue"


@pytest.mark.slow
def test_an_interrupt_ends_the_stages_in_one_line(world_home: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        from_arguments(tmp_path / f"{name}.yaml", grpo_arguments(world_home, tmp_path / name))
    command = [sys.executable, "-m", "mmsearch_trl", "stages", "first.yaml", "second.yaml", "--output_dir", "all"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith("stage 1 of 2, first: starts from ")
    time.sleep(2)  # the stage's process imports PyTorch
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all of its foreground group
    assert process.wait(30) == 130
    said = [line for line in process.stderr.read().splitlines() if line]
    assert len(said) == 1 and said[0].startswith("mmsearch: interrupted"), said
