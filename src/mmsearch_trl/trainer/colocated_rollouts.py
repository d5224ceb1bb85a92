"""Rollouts on vLLM in the trainer's own processes: one engine per rank, or one over several by tensor parallelism."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.engine.vllm_colocate import ColocatedEngine
from mmsearch_trl.engine.weight_files import save_adapter, sync_folder
from mmsearch_trl.engine.weight_sync import sampler_weights
from mmsearch_trl.trainer.engines import vocabulary
from mmsearch_trl.trainer.vllm_options import logprobs_mode, num_bytes, policy, sends_adapter
from mmsearch_trl.trainer.weight_version import WeightVersion


if TYPE_CHECKING:
    from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer

_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for `max_lora_rank`."""


class ColocatedRollouts:
    """Rollouts on vLLM in this process; ranks share an engine by tensor parallelism, or each has its own."""

    def __init__(self, trainer: MMSearchGRPOTrainer) -> None:
        args = trainer.args
        self._trainer = trainer
        self._watch = WeightVersion(trainer)
        self._resources = ExitStack()
        model = policy(trainer)
        lora = args.vllm_engine_args.get("max_lora_rank", _lora_rank(model))
        self._adapter = sends_adapter(trainer, lora)
        self._engine = ColocatedEngine(
            _source(model),
            vocabulary(trainer),
            engine_args=self._engine_args(lora),
            group=_tensor_parallel_group(args.vllm_tensor_parallel_size),
        )
        self._resources.callback(self._engine.close)
        self.max_model_len: int | None = self._engine.max_model_len
        if self._adapter:
            folder = trainer.run_dir / f"rank{trainer.accelerator.process_index}"  # each for its own engine
            size = num_bytes(model, trainable_only=True)
            self._folder = self._resources.enter_context(sync_folder(folder, local=True, num_bytes=size))

    @contextmanager
    def open(self) -> Iterator[ColocatedEngine]:
        if self._watch.changed(also=self._engine.needs_weights):
            self._send_weights()
            self._watch.sent()
        with self._engine.rollout():
            yield self._engine

    def close(self) -> None:
        self._resources.close()

    def _send_weights(self) -> None:
        trainer = self._trainer
        started = time.perf_counter()
        if self._adapter:
            sent = save_adapter(policy(trainer), self._folder, self._watch.count + 1)
            self._engine.load_adapter(sent.path, "policy")
            trainer.append_metrics({"sync/bytes": float(sent.num_bytes)})
        else:
            self._engine.load_weights(sampler_weights(policy(trainer)))
        trainer.append_metrics({"sync/seconds": time.perf_counter() - started})

    def _engine_args(self, lora_rank: int | None) -> dict[str, Any]:
        """TRL's arguments for vLLM in its own names, under those of `vllm_engine_args`."""
        trainer, args = self._trainer, self._trainer.args
        model = policy(trainer)
        rollouts = int(args.per_device_train_batch_size) * int(args.steps_per_generation or 1)
        given: dict[str, Any] = {
            "dtype": str(model.dtype).removeprefix("torch."),  # vLLM's own choice would make bf16 of fp32
            "max_num_seqs": rollouts * args.vllm_tensor_parallel_size,
            "enable_sleep_mode": args.vllm_enable_sleep_mode,
            "model_impl": args.vllm_model_impl,
            "logprobs_mode": logprobs_mode(args.temperature),
        }
        if args.vllm_max_model_length is not None:
            given["max_model_len"] = args.vllm_max_model_length
        if torch.cuda.is_available():
            given["gpu_memory_utilization"] = args.vllm_gpu_memory_utilization
        if self._adapter:
            given |= {"enable_lora": True, "max_lora_rank": lora_rank}
        return given | args.vllm_engine_args


def _source(model: Any) -> str:
    """Where vLLM reads configuration, processor and first weights from.

    Raises:
        UserError: the model was made in memory.
    """
    config = model.config
    if not config._name_or_path:
        raise UserError("vllm_mode: colocate needs a model that was loaded: save this one and its processor first.")
    return config._name_or_path


def _lora_rank(model: Any) -> int | None:
    """vLLM's smallest `max_lora_rank` that holds the model's adapters."""
    if not hasattr(model, "peft_config"):
        return None
    rank = max(getattr(config, "r", 0) for config in model.peft_config.values())
    return next((size for size in _VLLM_RANKS if size >= rank), rank)


def _tensor_parallel_group(size: int) -> Any:
    """This rank's group of `size` consecutive ranks; None when every rank has an engine of its own."""
    if size == 1:
        return None
    world = dist.get_world_size() if dist.is_initialized() else 1
    if world % size:
        raise UserError(f"vllm_tensor_parallel_size {size} does not divide the {world} processes of the run.")
    groups = [dist.new_group(list(range(first, first + size)), backend="gloo") for first in range(0, world, size)]
    return groups[dist.get_rank() // size]
