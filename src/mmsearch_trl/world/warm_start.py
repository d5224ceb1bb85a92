"""The warm start: supervised learning of perception and grammar, through TRL's `SFTTrainer`.

Every optimizer step sees as many traces that answer at once as traces that search, in two micro-batches, so that short
traces are not padded to the length of long ones. A trace is written when its number comes up, from a generator seeded
by that number: no two steps see the same trace, and the same seed sees the same ones.
"""

import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import Qwen2_5_VLForConditionalGeneration

from mmsearch_trl.protocol.mmsearch import MMSearchProtocol
from mmsearch_trl.trainer.demonstrations import collate
from mmsearch_trl.trainer.sft import MMSearchSFTConfig, MMSearchSFTTrainer
from mmsearch_trl.world.traces import TraceMix, TraceWriter
from mmsearch_trl.world.world import World


_TRACES_PER_HALF = 24


class TraceCollator:
    """Writes the traces of a micro-batch and lays them out; rows are `{"trace": number, "search": bool}`."""

    def __init__(self, world: World, protocol: MMSearchProtocol, seed: int) -> None:
        self._writers = {
            False: TraceWriter(world, protocol, TraceMix(search=0.0, known=0.4)),
            True: TraceWriter(world, protocol, TraceMix(search=1.0, known=0.3, shuffled_image=0.1, shuffled_text=0.1)),
        }
        self._protocol = protocol
        self._seed = seed

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        traces = [
            self._writers[row["search"]].trace(random.Random(f"trace {self._seed} {row['trace']}")) for row in rows
        ]
        return collate(traces, self._protocol.chat, self._protocol.chat.tokenizer.pad_token_id)


def warm_start_config(out: Path, *, steps: int, seed: int, **overrides: Any) -> MMSearchSFTConfig:
    """The settings that the thresholds of `docs/world.md` were reached with."""
    settings: dict[str, Any] = {
        "output_dir": str(out),
        "overwrite_output_dir": True,  # who writes a world looks whether its folder is used
        "max_steps": steps,
        "seed": seed,
        "per_device_train_batch_size": _TRACES_PER_HALF,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": False,
        "learning_rate": 2e-3,
        "adam_beta2": 0.95,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": int(0.4 * steps), "min_lr_ratio": 0.03},
        "warmup_steps": min(50, steps // 4),
        "train_sampling_strategy": "sequential",
        "dataloader_num_workers": 1,
        "remove_unused_columns": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,
        "logging_steps": 50,
        "disable_tqdm": False,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "use_cpu": not torch.cuda.is_available(),
    }
    return MMSearchSFTConfig(**(settings | overrides))


def warm_start(
    model: Qwen2_5_VLForConditionalGeneration, protocol: MMSearchProtocol, world: World, config: MMSearchSFTConfig
) -> MMSearchSFTTrainer:
    """Train `model` in place and return its trainer, with the log in `state.log_history`."""
    halves = config.max_steps * config.gradient_accumulation_steps
    size = config.per_device_train_batch_size
    rows = {"trace": list(range(halves * size)), "search": [i // size % 2 == 1 for i in range(halves * size)]}
    trainer = MMSearchSFTTrainer(
        model,
        config,
        train_dataset=Dataset.from_dict(rows),
        data_collator=TraceCollator(world, protocol, config.seed),
        processing_class=protocol.chat.processor,
        title="warm start",
    )
    trainer.train()
    return trainer
