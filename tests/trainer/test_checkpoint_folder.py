"""Which checkpoint a run goes on from, and which runs may share a folder; without a model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.trainer.checkpoint_folder import OPTIMIZER, SCHEDULER, STATE, checkpoint_to_resume, obstacle
from mmsearch_trl.trainer.run_records import begin_records, check_unused


def test_files_have_the_names_that_transformers_gives_them() -> None:
    assert (STATE, OPTIMIZER, SCHEDULER) == (TRAINER_STATE_NAME, OPTIMIZER_NAME, SCHEDULER_NAME)


def checkpoint(run_dir: Path, step: int, weights: str = "model.safetensors") -> Path:
    """What a run saves, as small as can be."""
    folder = run_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    save_file({"a": torch.arange(9.0), "b": torch.zeros(2, 3)}, folder / weights, metadata={"format": "pt"})
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.ones(8)}, folder / name)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _second_shard_missing(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing in it": (_empty, "its saving was cut off"),
    "killed before the state": (lambda f: (f / "trainer_state.json").unlink(), "its saving was cut off"),
    "killed in the state": (lambda f: cut(f / "trainer_state.json"), "its saving was cut off"),
    "state of another kind": (lambda f: (f / "trainer_state.json").write_text("[]"), "its saving was cut off"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "it holds no weights"),
    "weights cut": (lambda f: cut(f / "model.safetensors"), "model.safetensors is damaged"),
    "weights too long": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes() + b"\0"),
        "model.safetensors is damaged",
    ),
    "weights empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors is damaged"),
    "a shard missing": (_second_shard_missing, "model-00002-of-00002.safetensors is damaged"),
    "no optimizer": (lambda f: (f / "optimizer.pt").unlink(), "no optimizer and no learning rate"),
    "no scheduler": (lambda f: (f / "scheduler.pt").unlink(), "no optimizer and no learning rate"),
    "optimizer cut": (lambda f: cut(f / "optimizer.pt"), "optimizer.pt is damaged"),
}


@pytest.mark.parametrize(("spoil", "why"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("wanted", [True, "auto", "latest", "last"])
def test_the_newest_complete_checkpoint_is_taken_and_no_other(
    wanted: str | bool, spoil: Callable[[Path], object], why: str, tmp_path: Path
) -> None:
    for step in (9, 80, 100):  # by number, and not by letters
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-200.bak").mkdir()
    assert checkpoint_to_resume(wanted, tmp_path) == tmp_path / "checkpoint-100"
    spoil(tmp_path / "checkpoint-100")
    assert checkpoint_to_resume(wanted, tmp_path) == tmp_path / "checkpoint-80"
    with pytest.raises(UserError, match=why):
        checkpoint_to_resume(str(tmp_path / "checkpoint-100"), tmp_path)


def test_adapters_shards_and_deepspeed_s_own_folders_are_checkpoints_too(tmp_path: Path) -> None:
    assert obstacle(checkpoint(tmp_path, 1, "adapter_model.safetensors")) is None
    deepspeed = checkpoint(tmp_path, 2)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
        (deepspeed / name).unlink()
    (deepspeed / "global_step2").mkdir()
    assert obstacle(deepspeed) is None


def test_without_a_checkpoint_auto_begins_and_true_says_so(tmp_path: Path) -> None:
    assert checkpoint_to_resume("auto", tmp_path / "gone") is None
    assert checkpoint_to_resume(None, tmp_path) is None and checkpoint_to_resume(False, tmp_path) is None
    with pytest.raises(UserError, match=r"there is no checkpoint in .*--resume_from_checkpoint auto begins"):
        checkpoint_to_resume(True, tmp_path)
    cut_off = tmp_path / "checkpoint-5"
    cut_off.mkdir()
    assert checkpoint_to_resume("auto", tmp_path) is None
    with pytest.raises(UserError, match=r"checkpoint-5: it has no whole trainer_state\.json"):
        checkpoint_to_resume(True, tmp_path)


def test_checkpoints_of_weights_alone_are_not_begun_anew_by_auto(tmp_path: Path) -> None:
    (checkpoint(tmp_path, 3) / "optimizer.pt").unlink()
    with pytest.raises(UserError, match="checkpoint-3: it holds no optimizer and no learning rate"):
        checkpoint_to_resume("auto", tmp_path)


def test_a_run_s_folder_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoint(tmp_path, 3)
    with pytest.raises(UserError, match="is a run's folder: name one of the checkpoints in it"):
        checkpoint_to_resume(str(tmp_path), tmp_path)


def _traced(run_dir: Path) -> None:
    (run_dir / "traces").mkdir(parents=True)
    (run_dir / "traces" / "train-rank0.jsonl").write_text("{}\n")


def _saved(run_dir: Path) -> None:
    run_dir.mkdir(exist_ok=True)
    save_file({"a": torch.ones(1)}, run_dir / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("leave", "left"),
    [(lambda f: checkpoint(f, 2), "checkpoint-2"), (_traced, "traces"), (_saved, "a trained model")],
)
def test_a_used_folder_is_refused_unless_overwritten(
    leave: Callable[[Path], object], left: str, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    leave(run_dir)
    with pytest.raises(UserError, match=rf"holds a run already \({left}\).*--overwrite_output_dir to remove it"):
        check_unused(run_dir, None, resume=False, overwrite=False)
    elsewhere = checkpoint(tmp_path / "other", 4)
    with pytest.raises(UserError, match="holds a run already"):
        check_unused(run_dir, elsewhere, resume=True, overwrite=False)
    check_unused(run_dir, None, resume=False, overwrite=True)
    (run_dir / "notes.txt").write_text("mine")
    begin_records(run_dir, None, overwrite=True)
    assert sorted(path.name for path in run_dir.iterdir()) == ["notes.txt"]


def test_a_run_that_was_ended_before_its_first_checkpoint_begins_anew_under_auto(tmp_path: Path) -> None:
    _traced(tmp_path)
    check_unused(tmp_path, None, resume=True, overwrite=False)
    _saved(tmp_path)  # but a finished one, that saved no checkpoints, does not
    with pytest.raises(UserError, match="a trained model"):
        check_unused(tmp_path, None, resume=True, overwrite=False)


def test_what_a_run_starts_from_is_not_overwritten(tmp_path: Path) -> None:
    start = checkpoint(tmp_path, 2)
    with pytest.raises(UserError, match="which the run starts from"):
        check_unused(tmp_path, start, resume=True, overwrite=True)
    with pytest.raises(UserError, match="which the run starts from"):
        check_unused(tmp_path, None, resume=False, overwrite=True, model=str(start))


def test_later_checkpoints_are_set_aside_and_those_cut_off_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = checkpoint(tmp_path, 2)
    for step in (1, 4, 6):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-6" / "trainer_state.json").unlink()
    for name in ("eval_known_step2_30.json", "eval_known_step4_30.json", "known_30.json"):
        (tmp_path / "evaluation").mkdir(exist_ok=True)
        (tmp_path / "evaluation" / name).write_text("[]")
    begin_records(tmp_path, start, overwrite=False)
    assert "checkpoint-4 is now abandoned-checkpoint-4" in caplog.text and "checkpoint-6 is removed" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "abandoned-checkpoint-4",
        "checkpoint-1",
        "checkpoint-2",
        "evaluation",
    ]
    assert sorted(path.name for path in (tmp_path / "evaluation").iterdir()) == [
        "eval_known_step2_30.json",
        "known_30.json",
    ]
