"""What follows from a trainer's arguments for vLLM: which servers, which log-probs, what is sent of new weights."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from torch import nn

from mmsearch_trl.core.errors import EngineError, UserError
from mmsearch_trl.engine.vllm_client import ServerInfo
from mmsearch_trl.engine.vllm_worker import EXTENSION
from mmsearch_trl.engine.weight_sync import native_adapter_obstacle


if TYPE_CHECKING:
    from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer

logger = logging.getLogger(__name__)


def server_urls(args: Any) -> list[str]:
    """Where the servers are, from our list or TRL's own arguments."""
    if args.vllm_server_urls:
        return list(args.vllm_server_urls)
    if args.vllm_server_base_url:
        return [args.vllm_server_base_url]
    host = "127.0.0.1" if args.vllm_server_host == "0.0.0.0" else args.vllm_server_host
    return [f"http://{host}:{args.vllm_server_port}"]


def logprobs_mode(temperature: float) -> str:
    """vLLM's mode whose log-probs are at the sampling temperature.

    Raw ones are those of the full softmax, exactly as the trainer's, but at temperature 1; processed ones are at any
    temperature, and off by the little probability of the ids that may not be sampled.
    """
    return "raw_logprobs" if temperature == 1.0 else "processed_logprobs"


def check_server(url: str, info: ServerInfo, temperature: float) -> None:
    """Refuse a server whose turns would be wrong, before the first is asked for.

    Raises:
        EngineError: the message names the flag.
    """
    wanted = logprobs_mode(temperature)
    if info.logprobs_mode != wanted and wanted == "processed_logprobs":
        raise EngineError(
            f"{url} gives log-probs at temperature 1 and the rollouts are sampled at {temperature}: start it with "
            f"--logprobs-mode {wanted}"
        )
    if info.logprobs_mode not in ("raw_logprobs", "processed_logprobs"):
        raise EngineError(f"{url} gives {info.logprobs_mode} for log-probs: start it with --logprobs-mode {wanted}")
    if info.device == "cpu" and info.chunked_prefill:
        raise EngineError(
            f"{url} would end at the first long prompt: vLLM on a CPU cannot prefill a request with a seed in pieces. "
            "Start it with --no-enable-chunked-prefill and --max-num-batched-tokens of at least --max-model-len "
            "(`mmsearch vllm` does)"
        )
    if info.device == "cpu" and info.worker_extension != EXTENSION:
        raise EngineError(
            f"{url} would keep the old weights of a tied output head at every sync: start a CPU server with "
            f"--worker-extension-cls {EXTENSION} (`mmsearch vllm` does)"
        )


def sends_adapter(trainer: MMSearchGRPOTrainer, max_rank: int | None) -> bool:
    """Whether the adapter alone is sent.

    Args:
        max_rank: The sampler's; None when it serves no adapters.

    Raises:
        UserError: the arguments insist on it, and vLLM cannot.
    """
    choice = trainer.args.vllm_lora_sync
    model = policy(trainer)
    if choice == "merged":
        return False
    obstacle = native_adapter_obstacle(model, max_rank)
    if obstacle is None and max_rank is None:
        obstacle = "the server was started without --enable-lora"
    if obstacle is not None and choice == "adapter":
        raise UserError(f"vllm_lora_sync: adapter, but {obstacle}. Set it to merged or auto.")
    if obstacle is not None and hasattr(model, "peft_config"):
        logger.warning("vLLM gets merged weights instead of the adapter alone: %s.", obstacle)
    return obstacle is None


def policy(trainer: MMSearchGRPOTrainer) -> Any:
    """The trained model itself, without what distributed training wraps around it."""
    return trainer.accelerator.unwrap_model(trainer.model)


def num_bytes(model: nn.Module, *, trainable_only: bool) -> int:
    parameters = [p for p in model.parameters() if p.requires_grad or not trainable_only]
    return sum(int(getattr(p, "ds_numel", p.numel())) * p.element_size() for p in parameters)
