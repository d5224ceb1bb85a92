"""What a run asks of vLLM: which log-probs, how a server must have been started, what is sent of weights."""

import logging
from typing import Any

from mmsearch_trl.core.errors import EngineError, UserError
from mmsearch_trl.engine.vllm_client import ServerInfo
from mmsearch_trl.engine.vllm_worker import EXTENSION
from mmsearch_trl.engine.weight_sync import native_adapter_obstacle


logger = logging.getLogger(__name__)


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


def sends_adapter(model: Any, lora_sync: str, max_rank: int | None) -> bool:
    """Whether the adapter alone is sent.

    Args:
        lora_sync: `vllm_lora_sync`.
        max_rank: The sampler's; None when it serves no adapters.

    Raises:
        UserError: the arguments insist on it, and vLLM cannot.
    """
    if lora_sync == "merged":
        return False
    obstacle = native_adapter_obstacle(model, max_rank)
    if obstacle is None and max_rank is None:
        obstacle = "the server was started without --enable-lora"
    if obstacle is not None and lora_sync == "adapter":
        raise UserError(f"vllm_lora_sync: adapter, but {obstacle}. Set it to merged or auto.")
    if obstacle is not None and hasattr(model, "peft_config"):
        logger.warning("vLLM gets merged weights instead of the adapter alone: %s.", obstacle)
    return obstacle is None
