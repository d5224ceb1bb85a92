"""Processes of the commands, and a folder with everything that can be wrong with what a person has."""

import json
import shutil
from pathlib import Path

import pytest
from runs import write_jsonl

from mmsearch_trl.traces.records import TraceOutcome, TraceRecord


@pytest.fixture(scope="session")
def place(world_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that can be wrong with what a person has; not to be changed."""
    place = tmp_path_factory.mktemp("place")
    world = world_home / "world"
    row = json.loads((world / "train.jsonl").read_text().splitlines()[0])
    good = row | {"image": str(world / row["image"])}
    write_jsonl(place / "good.jsonl", [good, good])
    write_jsonl(place / "bad.jsonl", [good, good | {"answers": True}])
    write_jsonl(place / "no_picture.jsonl", [good, good | {"image": "gone.png"}])
    write_jsonl(place / "other.jsonl", [{"text": "a passage"}, {"text": "another"}])
    write_jsonl(place / "bad_lesson.jsonl", [{"question": "?", "turns": []}])
    write_jsonl(place / "pictures.jsonl", [{"image": "file", "title": "no picture"}])
    (place / "bytes.jsonl").write_bytes(b'{"question": "\xff"}\n{}\n')
    (place / "a.parquet").write_bytes(b"PAR1 but not really")
    (place / "file").write_text("plain text")
    (place / "empty").mkdir()
    (place / "wrong.yaml").write_text("a: [")
    (place / "list.yaml").write_text("- a")
    (place / "search.yaml").write_text("search:\n  text: {backend: bm25, path: gone}\n")
    for name, lost in (("image_index", "vectors.npy"), ("text_index", "tantivy/meta.json")):
        shutil.copytree(world / name, place / name)
        (place / name / lost).unlink()
    shutil.copytree(world_home / "model", place / "torn_model")
    weights = place / "torn_model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    shutil.copytree(world_home / "model", place / "no_tokenizer")
    for file in (place / "no_tokenizer").glob("*token*"):
        file.unlink()
    shutil.copytree(world_home / "model", place / "adapter", ignore=shutil.ignore_patterns("*.safetensors"))
    config = {"peft_type": "LORA", "base_model_name_or_path": "./gone", "task_type": "CAUSAL_LM"}
    (place / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    (place / "used" / "checkpoint-7").mkdir(parents=True)
    (place / "demo").mkdir()
    (place / "demo" / "summary.json").write_text("{}")
    (place / "run" / "traces").mkdir(parents=True)
    (place / "run" / "traces" / "train-rank0.jsonl").write_text('{"id": 1}\n')
    (place / "seen" / "traces").mkdir(parents=True)
    seen = TraceRecord(
        id="1", split="train", step=0, data_source="", category=None, group=None, question="?", answers=("!",),
        outcome=TraceOutcome(stop="answered", right=True, searched=False), prompt=("?",), images=(), turns=(),
        reward=1.0, rewards={}, advantage=None, seconds=0.0,
    )  # fmt: skip
    (place / "seen" / "traces" / "train-rank0.jsonl").write_text(seen.to_json() + "\n")
    return place
