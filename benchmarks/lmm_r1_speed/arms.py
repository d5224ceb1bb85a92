"""The three arms: trainers of one checkpoint on the same prompts, each making the same optimizer step.

A step takes `prompts` prompts with `group` completions each, all of exactly `tokens` tokens: ids that would end a
turn, and those that stand for images, may not be sampled. Micro-batches hold one group. KL to a reference as in R1-V,
full weights, AdamW. What differs is how completions come about, and what is then forwarded:

* `r1v`: TRL's trainer as R1-V's works: it generates for one prompt at a time, its whole group in one call of the
  model's own `generate`, and forwards it before the next. TRL's fused LM head stays, which R1-V did not have. It
  needs no log-probs of the policy before the update, as what vLLM sampled does.
* `ours`: this project's trainer; all prompts of a step at once on a vLLM server.
* `trl`: TRL's trainer with its own client of the same server, likewise. TRL sends weights over NCCL and refuses to
  without a GPU: here they go the way ours go, through a file in shared memory. All else is TRL's.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from benchmarks.lmm_r1_speed.clock import Clock, Step
from benchmarks.lmm_r1_speed.model import make_chat, make_processor
from benchmarks.lmm_r1_speed.prompts import make_tasks, rows_of, trl_rows_of
from transformers import PrinterCallback, Qwen2_5_VLForConditionalGeneration
from trl import GRPOConfig, GRPOTrainer
from trl.generation import vllm_client as trl_client

from mmsearch_trl.engine.vllm_client import VLLMClient
from mmsearch_trl.engine.weight_files import save_weights, sync_folder
from mmsearch_trl.protocol.direct import DirectProtocol
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer


_KL = 0.04
"""R1-V's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What every arm does.

    Attributes:
        checkpoint: Where model, reference and server start from.
        url: The server's.
        folder: For what trainers write.
        prompts: Of a step.
        group: Completions of a prompt.
        tokens: Of a completion.
        steps: Optimizer steps that are timed, after one that is not.
    """

    checkpoint: Path
    url: str
    folder: Path
    pictures: bool
    prompts: int
    group: int
    tokens: int
    steps: int


def run_r1v(work: Work) -> list[Step]:
    config = GRPOConfig(
        **_shared(work),
        max_completion_length=work.tokens,
        steps_per_generation=1,
        generation_kwargs={"suppress_tokens": _forbidden()},
    )
    clock = Clock()
    trainer = _trl_trainer(work, config, clock)
    return _train(trainer, clock)


def run_trl(work: Work) -> list[Step]:
    never = {str(token): -100.0 for token in _forbidden()}
    config = GRPOConfig(
        **_shared(work),
        **_server(work),
        max_completion_length=work.tokens,
        generation_kwargs={"logit_bias": never, "ignore_eos": True},
    )
    clock = Clock()
    with _weights_by_file(work):
        trainer = _trl_trainer(work, config, clock)
        clock.watch(trainer.vllm_generation, "sync_weights", "sync")
        return _train(trainer, clock)


def run_ours(work: Work) -> list[Step]:
    config = MMSearchGRPOConfig(**_shared(work), **_server(work), save_traces=False)
    clock, processor = Clock(), make_processor()
    trainer = MMSearchGRPOTrainer(
        _policy(work),
        reward,
        config,
        protocol=DirectProtocol(make_chat(processor)),
        limits=Limits(max_turns=1, max_turn_tokens=work.tokens, max_response_tokens=work.tokens),
        train_dataset=rows_of(make_tasks(work.prompts, pictures=work.pictures)),
        processing_class=processor,
        callbacks=[clock],
    )
    clock.watch(trainer, "_generate_and_score_completions", "score")
    clock.watch(trainer.collector, "collect", "generate")
    clock.watch(trainer.sampler, "_send_weights", "sync")
    try:
        return _train(trainer, clock)
    finally:
        trainer.close()


ARMS: dict[str, Callable[[Work], list[Step]]] = {"r1v": run_r1v, "ours": run_ours, "trl": run_trl}


def reward(completions: list[Any], **columns: Any) -> list[float]:
    """Differs between completions, so that there is something to learn from."""
    return [sum(map(ord, messages[-1]["content"])) % 17 / 16 for messages in completions]


def _shared(work: Work) -> dict[str, Any]:
    return {
        "output_dir": str(work.folder),
        "per_device_train_batch_size": work.group,
        "gradient_accumulation_steps": work.prompts,
        "num_generations": work.group,
        "max_steps": work.steps + 1,
        "beta": _KL,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def _server(work: Work) -> dict[str, Any]:
    return {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": work.url}


def _forbidden() -> list[int]:
    return sorted(make_chat(make_processor()).forbidden_ids)


def _policy(work: Work) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(work.checkpoint, dtype=torch.float32)


def _trl_trainer(work: Work, config: GRPOConfig, clock: Clock) -> Any:
    trainer = GRPOTrainer(
        _policy(work),
        cast(Any, reward),
        config,
        train_dataset=trl_rows_of(make_tasks(work.prompts, pictures=work.pictures)),
        processing_class=make_processor(),
        callbacks=[clock],
    )
    clock.watch(trainer, "_generate_and_score_completions", "score")
    clock.watch(trainer, "_generate", "generate")
    return trainer


def _train(trainer: Any, clock: Clock) -> list[Step]:
    """The steps but the first, in which everything is done for the first time.

    Raises:
        RuntimeError: a completion was shorter than all tokens.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    lengths = {log["completions/mean_length"] for log in trainer.state.log_history if "completions/mean_length" in log}
    if len(lengths) != 1:
        raise RuntimeError(f"completions have {sorted(lengths)} tokens on average, not always the same number")
    return clock.steps[1:]


@contextmanager
def _weights_by_file(work: Work) -> Iterator[None]:
    """TRL's client without NCCL: weights go through a file that the server reads, and its caches are emptied."""

    async def load(folder: Path) -> None:
        client = VLLMClient(work.url, request_seconds=120.0)
        try:
            await client.load_weights(str(folder))
            await client.reset_caches()
        finally:
            await client.close()

    size = sum(file.stat().st_size for file in work.checkpoint.glob("*.safetensors"))
    with sync_folder(work.folder, local=True, num_bytes=size) as folder:

        def update(self: Any, metadata: Any, named_params: Iterator[tuple[str, torch.Tensor]]) -> None:
            sent = save_weights(named_params, folder, 1)
            asyncio.run(load(sent.path))

        with _patched(init_communicator=lambda self, device: None, update_named_params=update):
            yield


def _patched(**methods: Any) -> AbstractContextManager[Any]:
    return patch.multiple(trl_client.VLLMClient, **methods)
