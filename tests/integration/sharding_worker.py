"""Training on rows with and without pictures: all weights, an adapter, with a critic, supervised (`test_sharding.py`).

Run by `accelerate launch`, weights are sharded by FSDP2 over two CPU processes; called, there is one process.
"""

import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


if __name__ == "__main__":
    gc.disable()  # so short a life needs no collector, and most of it are imports
sys.path.insert(0, str(Path(__file__).parent.parent))

import tiny
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import LoraConfig

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import FinishReason
from mmsearch_trl.core.trajectory import Trajectory, Turn
from mmsearch_trl.trainer.critic_config import CriticConfig
from mmsearch_trl.trainer.demonstrations import collate
from mmsearch_trl.trainer.estimator_config import EstimatorConfig
from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer
from mmsearch_trl.trainer.sft import MMSearchSFTConfig, MMSearchSFTTrainer


FAMILY = tiny.qwen25()
ROWS = tiny.tasks(8, images=(0, 1, 0, 0))
KEYS = ("critic/loss", "critic/grad_norm", "loss", "grad_norm", "reward", "num_tokens", "entropy")


def main(out: Path, per_device: int) -> None:
    """Writes `OUT/grpo`, `OUT/lora`, `OUT/ppo` and `OUT/sft`; and `OUT/rounded.json`."""
    for name, build in (("grpo", grpo), ("lora", lora), ("ppo", ppo), ("sft", sft)):
        save(build, out / name, per_device)
    trainer = ppo(out / "rounded", per_device, bf16=True)
    found = {"log_probs": seen(trainer, "_get_per_token_logps_and_entropies", 0), "values": seen(trainer, "values_of")}
    trainer.train()
    (out / "rounded.json").write_text(json.dumps({name: is_rounded(values) for name, values in found.items()}))


def seen(trainer: Any, method: str, part: int | None = None) -> list[torch.Tensor]:
    """What a method returns from now on, or a part of it."""
    values, original = [], getattr(trainer, method)

    def spy(*args: Any, **options: Any) -> Any:
        returned = original(*args, **options)
        values.append(returned if part is None else returned[part])
        return returned

    setattr(trainer, method, spy)
    return values


def is_rounded(values: list[torch.Tensor]) -> bool:
    """Whether bfloat16 would hold all of them."""
    assert values
    return all(bool((value == value.bfloat16()).all()) for value in values)


def save(build: Callable[[Path, int], Any], out: Path, per_device: int) -> None:
    """Train, and write the model and a log."""
    out.mkdir(parents=True, exist_ok=True)
    trainer = build(out, per_device)
    trainer.train()
    trainer.save_model(str(out))
    if trainer.accelerator.is_main_process:
        logs = [{key: log[key] for key in KEYS if key in log} for log in trainer.state.log_history[:-1]]
        (out / "logs.json").write_text(json.dumps([trainer.accelerator.distributed_type, logs]))


def lora(out: Path, per_device: int) -> Any:
    return grpo(out, per_device, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))


def ppo(out: Path, per_device: int, **options: Any) -> Any:
    critic = {"estimator": EstimatorConfig(name="gae"), "critic": CriticConfig(learning_rate=1e-3)}
    return grpo(out, per_device, num_generations=1, **critic, **options)


def grpo(out: Path, per_device: int, adapter: LoraConfig | None = None, **options: Any) -> Any:
    settings: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 2, "max_grad_norm": 0.0}
    settings |= {"num_generations": 4, "advantage_eps": 1e-6, "gradient_checkpointing": True}
    settings |= {"per_device_train_batch_size": per_device // 2, "gradient_accumulation_steps": 2}
    settings |= options
    if "estimator" in options:
        del settings["advantage_eps"]
    return MMSearchGRPOTrainer(
        FAMILY.model(),
        tiny.by_letters,
        sharded(tiny.config(out, **settings)),
        search=tiny.CannedTools(),
        limits=tiny.LIMITS,
        protocol=FAMILY.restless(),
        train_dataset=tiny.dataset(ROWS),
        processing_class=FAMILY.processor,
        peft_config=adapter,
    )


def sft(out: Path, per_device: int) -> Any:
    protocol = FAMILY.protocol()

    def collator(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return collate([spoken(ROWS[row["row"]], protocol) for row in rows], protocol.chat, 0)

    settings: dict[str, Any] = {"use_cpu": True, "bf16": False, "max_steps": 2, "report_to": "none", "optim": "sgd"}
    settings |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False, "max_length": None}
    settings |= {"learning_rate": 0.1, "logging_steps": 1, "save_strategy": "no", "max_grad_norm": 0.0}
    settings |= {"train_sampling_strategy": "sequential", "lr_scheduler_type": "constant", "disable_tqdm": True}
    return MMSearchSFTTrainer(
        FAMILY.model(),
        sharded(MMSearchSFTConfig(str(out), per_device_train_batch_size=per_device // 4, **settings)),
        train_dataset=Dataset.from_list([{"row": row} for row in range(4)]),
        data_collator=collator,
        processing_class=FAMILY.processor,
    )


def spoken(task: Any, protocol: Any) -> Trajectory:
    prompt = protocol.prompt(task)
    ids = (*protocol.chat.tokenizer("it is new")["input_ids"], protocol.chat.turn_end_id)
    turn: dict[str, Any] = {"logprobs": (0.0,) * len(ids), "finish_reason": FinishReason.STOP, "text": "it is new"}
    trajectory = Trajectory(task=task, prompt=prompt.parts, prompt_ids=prompt.token_ids)
    trajectory.turns = [Turn(token_ids=ids, action=Action(ActionKind.ANSWER), **turn)]
    return trajectory


def sharded(args: Any) -> Any:
    """accelerate shards between devices only, and would copy the model to CPU processes without a word."""
    assert args.device.type == "cpu"  # it has made the state that is changed below
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return args


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
