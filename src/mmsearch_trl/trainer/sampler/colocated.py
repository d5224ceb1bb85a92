"""vLLM in the trainer's own processes: one engine per rank, or one over several by tensor parallelism."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.distributed.policy import Policy
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.engine.vllm_client import images_per_prompt
from mmsearch_trl.engine.vllm_colocate import ColocatedEngine
from mmsearch_trl.engine.vllm_requests import Vocabulary
from mmsearch_trl.engine.weight_files import save_adapter, sync_folder
from mmsearch_trl.engine.weight_sync import sampler_weights
from mmsearch_trl.trainer.sampler.sampler import OpenEngine, SamplerOptions, SyncStatistics
from mmsearch_trl.trainer.sampler.vllm_options import logprobs_mode, sends_adapter
from mmsearch_trl.trainer.sampler.weight_version import WeightVersion


_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for `max_lora_rank`."""


class ColocatedSampler:
    """Samples on vLLM in this process; ranks share an engine by tensor parallelism, or each has its own."""

    def __init__(self, options: SamplerOptions, policy: Policy, vocabulary: Vocabulary, ranks: Ranks) -> None:
        self._version = WeightVersion(ranks)
        self._resources = ExitStack()
        model = policy.model
        lora_rank = options.vllm_engine_args.get("max_lora_rank", _lora_rank(model))
        self._adapter = sends_adapter(model, options.vllm_lora_sync, lora_rank)
        given = _engine_args(options, model)
        if self._adapter:
            given |= {"enable_lora": True, "max_lora_rank": lora_rank}
        self._engine = ColocatedEngine(
            _source(model),
            vocabulary,
            engine_args=given | options.vllm_engine_args,
            group=_tensor_parallel_group(options.vllm_tensor_parallel_size),
        )
        self._resources.callback(self._engine.close)
        self.max_model_len: int | None = self._engine.max_model_len
        self.max_images = images_per_prompt(options.vllm_engine_args.get("limit_mm_per_prompt") or {})
        if self._adapter:
            folder = Path(options.output_dir) / f"rank{ranks.index}"  # each for its own engine
            size = policy.num_bytes(trainable_only=True)
            self._folder = self._resources.enter_context(sync_folder(folder, local=True, num_bytes=size))

    @contextmanager
    def open(self, policy: Policy) -> Iterator[OpenEngine]:
        statistics = SyncStatistics()
        if self._version.changed(policy, also=self._engine.needs_weights):
            self._send_weights(policy, statistics)
            self._version.sent(policy)
        with self._engine.rollout():
            yield OpenEngine(self._engine, statistics)

    def close(self) -> None:
        self._resources.close()

    def _send_weights(self, policy: Policy, statistics: SyncStatistics) -> None:
        started = time.perf_counter()
        if self._adapter:
            sent = save_adapter(policy.model, self._folder, self._version.count + 1)
            self._engine.load_adapter(sent.path, "policy")
            statistics.num_bytes = sent.num_bytes
        else:
            self._engine.load_weights(sampler_weights(policy.model))
        statistics.seconds = time.perf_counter() - started


def _engine_args(options: SamplerOptions, model: Any) -> dict[str, Any]:
    """TRL's arguments for vLLM in its own names."""
    given: dict[str, Any] = {
        "dtype": str(model.dtype).removeprefix("torch."),  # vLLM's own choice would make bf16 of fp32
        "max_num_seqs": options.max_num_seqs * options.vllm_tensor_parallel_size,
        "enable_sleep_mode": options.vllm_enable_sleep_mode,
        "model_impl": options.vllm_model_impl,
        "logprobs_mode": logprobs_mode(options.temperature),
    }
    if options.vllm_max_model_length is not None:
        given["max_model_len"] = options.vllm_max_model_length
    if torch.cuda.is_available():
        given["gpu_memory_utilization"] = options.vllm_gpu_memory_utilization
    return given


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
