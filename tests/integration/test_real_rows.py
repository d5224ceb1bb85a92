"""GRPO with LoRA on real rows: FVQA questions with JPEG images up to 800 px, their own images in the index."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.data.dataset import load_dataset_rows, row_to_task
from mmsearch_trl.rewards.mmsearch import RewardConfig
from mmsearch_trl.rewards.rule_reward import RuleReward
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.search.image.index import ImageIndex
from mmsearch_trl.search.index_build import build_image_index, build_text_index
from mmsearch_trl.search.runtime import SearchRuntime
from mmsearch_trl.search.text.bm25 import TextIndex


pytestmark = pytest.mark.slow

PARQUET = Path(__file__).parent.parent / "fixtures" / "fvqa_mini.parquet"
LIMITS = Limits(max_turns=3, max_turn_tokens=6, max_response_tokens=2000)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("indexes")
    rows: Any = load_dataset_rows(PARQUET, cache_dir=folder / "cache")
    tasks = [row_to_task(row) for row in rows]
    pictures, passages = [], []
    for number, task in enumerate(tasks):
        task.images[0].save(folder / f"{number}.jpg", quality=85)
        pictures.append(
            {"image": f"{number}.jpg", "title": f"Page {number}: {task.answers[0]}", "url": task.image_url}
        )
        passages.append({"title": task.question, "text": f"{task.question} {task.answers[0]}."})
    for name, entries in (("pictures", pictures), ("passages", passages)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    build_image_index(folder / "pictures.jsonl", folder / "images", progress=False)
    build_text_index(folder / "passages.jsonl", folder / "text", progress=False)
    runtime = SearchRuntime(ImageIndex.open(folder / "images"), TextIndex.open(folder / "text"), k_image=2, k_text=2)
    yield runtime
    runtime.close()


def test_three_steps_with_lora_on_real_rows(runtime: SearchRuntime, tmp_path: Path) -> None:
    family = tiny.qwen25()
    family.processor.image_processor.size = {"shortest_edge": 28**2, "longest_edge": 112**2}
    rows: Any = load_dataset_rows(PARQUET, cache_dir=tmp_path / "cache")
    assert len(rows) == 5 and max(max(size) for row in rows for size in row["image_sizes"]) >= 600
    trainer = tiny.MMSearchGRPOTrainer(
        family.model(),
        [tiny.by_letters, RuleReward(RewardConfig())],
        tiny.config(tmp_path, max_steps=3, per_device_train_batch_size=4, num_generations=2, save_traces=True),
        search=runtime,
        limits=LIMITS,
        protocol=family.restless(),
        train_dataset=rows,
        processing_class=family.processor,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    before = trainer.model.get_base_model().lm_head.weight.clone()
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 3 and all(log["grad_norm"] > 0 for log in logs)
    assert sum(log["search/image_ratio"] for log in logs) > 0 and sum(log["search/text_ratio"] for log in logs) > 0
    assert all(log["search/failure_rate"] == 0 and log["rollout/failed"] == 0 for log in logs)
    assert before.equal(trainer.model.get_base_model().lm_head.weight)
    assert any(p.any() for name, p in trainer.model.named_parameters() if "lora_B" in name)

    batch = tiny.rollout_batch(trainer, [dict(row) for row in rows.select([0, 1, 2, 3])])
    values = tiny.padded_log_probs(trainer, batch.output)
    for trajectory, row in zip(batch.trajectories, values, strict=True):
        sampled = torch.tensor(trajectory.logprobs)
        torch.testing.assert_close(row[: len(sampled)], sampled, atol=2e-5, rtol=0)
        for observation in trajectory.observations:
            assert observation.failure is None
            assert observation.hits or observation.tool == ActionKind.TEXT_SEARCH, "random words may find nothing"
    trainer.close()


def test_a_picture_of_the_data_finds_itself(runtime: SearchRuntime, tmp_path: Path) -> None:
    trainer = tiny.trainer(tiny.qwen25(), tmp_path, tools=runtime)
    rows: Any = load_dataset_rows(PARQUET, cache_dir=tmp_path / "cache")
    for number, row in enumerate(rows):
        query = tiny.ImageQuery(row_to_task(row).images[0])
        found = trainer.rollouter.loop.run(runtime.image_search(query))
        assert found.hits[0].title.startswith(f"Page {number}:")
