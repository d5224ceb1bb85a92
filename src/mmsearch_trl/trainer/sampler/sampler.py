"""What writes the rollouts of a run: an engine that holds the current weights.

A sampler is opened once per rollout batch. It brings its engine to the policy's weights if these changed, and yields
it. Every rank must open it equally often: gathering weights is a call that all ranks make together.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from mmsearch_trl.distributed.policy import Policy
from mmsearch_trl.engine.base import TimedEngine


@dataclass(slots=True)
class SyncStatistics:
    """What a rollout batch cost beside generating; complete when the sampler's context is left.

    Attributes:
        seconds: Of bringing the engine to the current weights; None where they had not changed.
        num_bytes: Sent of them; None where nothing was, or it is not known.
        engine_retries: Turns that were tried again, over all ranks; None for an engine without servers.
        servers_restored: Servers that were given lost weights back; None likewise.
    """

    seconds: float | None = None
    num_bytes: int | None = None
    engine_retries: int | None = None
    servers_restored: int | None = None

    def metrics(self) -> dict[str, float]:
        """Under the names of the log."""
        named = {
            "sync/seconds": self.seconds,
            "sync/bytes": self.num_bytes,
            "rollout/engine_retries": self.engine_retries,
            "rollout/servers_restored": self.servers_restored,
        }
        return {name: float(value) for name, value in named.items() if value is not None}


@dataclass(frozen=True, slots=True)
class OpenEngine:
    engine: TimedEngine
    statistics: SyncStatistics


class Sampler(Protocol):
    max_model_len: int | None
    """Tokens of prompt and response that the engine can hold; None where the model decides."""

    max_images: int | None
    """Pictures of one prompt that it takes; None for any number."""

    def open(self, policy: Policy) -> AbstractContextManager[OpenEngine]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerOptions:
    """What samplers take of a run's arguments; each is named as in `MMSearchGRPOConfig`."""

    use_vllm: bool
    vllm_mode: str
    temperature: float
    gradient_checkpointing_kwargs: dict[str, Any] | None
    max_rollout_batch: int
    output_dir: str
    max_num_seqs: int
    """Trajectories of one rank's generation batch."""
    vllm_server_urls: tuple[str, ...]
    vllm_server_timeout: float
    vllm_request_timeout: float
    vllm_group_port: int
    vllm_lora_sync: str
    vllm_engine_args: dict[str, Any]
    vllm_tensor_parallel_size: int
    vllm_enable_sleep_mode: bool
    vllm_model_impl: str
    vllm_max_model_length: int | None
    vllm_gpu_memory_utilization: float
