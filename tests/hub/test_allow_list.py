"""What a push publishes of a run that wrote all that it can write."""

from pathlib import Path
from typing import Any

import pytest
import tiny
from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects

from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer


pytestmark = pytest.mark.slow

NEEDED = {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
NEEDED |= {"processor_config.json", "README.md"}
QUESTION = "what did nobody agree to publish"


class Uploads:
    """In the place of the Hub's client: the files of each upload, by their path in the repository."""

    def __init__(self) -> None:
        self.files: list[dict[str, Path]] = []

    def __call__(self, api: HfApi, **options: Any) -> Any:
        folder = Path(options["folder_path"])
        paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        chosen = filter_repo_objects(
            paths, allow_patterns=options["allow_patterns"], ignore_patterns=options["ignore_patterns"]
        )
        self.files.append({path: folder / path for path in chosen})
        return _Done()


class _Done:
    def is_done(self) -> bool:
        return True

    done = is_done

    def result(self) -> None:
        pass


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> Uploads:
    uploads = Uploads()
    monkeypatch.setattr(HfApi, "upload_folder", lambda api, **options: uploads(api, **options))
    monkeypatch.setattr(HfApi, "create_repo", lambda api, name, **options: type("Url", (), {"repo_id": name})())
    return uploads


def run(out: Path, **options: Any) -> MMSearchGRPOTrainer:
    """A run with every record there is: traces, completions, a page, checkpoints inside a generation batch."""
    family, [task, *others] = tiny.qwen25(), tiny.tasks(4)
    given = [tiny.Task(id="secret", question=QUESTION, images=task.images, answers=task.answers), *others]
    settings: dict[str, Any] = {
        "save_traces": True,
        "log_completions": True,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    settings |= {"steps_per_generation": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    settings |= {"push_to_hub": True, "hub_model_id": "someone/agent"}
    trainer = tiny.trainer(family, out, given, **(settings | options))
    for name in ("trajectories.html", "learning.png", "notes.txt", ".env"):
        (out / name).write_text(QUESTION)
    (out / "evaluation").mkdir()
    (out / "evaluation" / "config.json").write_text(QUESTION)
    trainer.train()
    trainer.push_to_hub()
    return trainer


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_a_push_from_python_publishes_no_question_and_no_picture(
    strategy: str, uploads: Uploads, tmp_path: Path
) -> None:
    run(tmp_path, hub_strategy=strategy)
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert {"completions_00001.parquet", "train-rank0.jsonl", "generation_batch_0.pt"} <= written
    assert uploads.files and set(uploads.files[-1]) >= NEEDED
    for files in uploads.files:
        assert not [name for name in files if name.split("/")[0] in ("traces", "completions", "evaluation")]
        assert not {"trajectories.html", "learning.png", "notes.txt", ".env", "generation_batch_0.pt"} & set(files)
        assert not [name for name, path in files.items() if QUESTION.encode() in path.read_bytes()]


def test_a_published_checkpoint_can_be_gone_on_with(uploads: Uploads, tmp_path: Path) -> None:
    run(tmp_path, hub_strategy="checkpoint")
    resumed = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors"}
    assert any(set(files) >= resumed for files in uploads.files)
