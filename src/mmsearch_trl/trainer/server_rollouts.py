"""Rollouts on vLLM servers with the trainer's weights.

Weights are sent when they have changed and not otherwise, in the form that is least to send: the LoRA adapter alone
where vLLM can apply it, else all weights with the adapter merged beside them (`engine/weight_sync.py`). They never go
through a merge in place, as TRL's do: in bf16 that moves the base weights with every step.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import torch
from accelerate.utils import broadcast_object_list

from mmsearch_trl.core.errors import EngineError
from mmsearch_trl.engine.vllm_client import ServerInfo, VLLMClient, wait_until_healthy
from mmsearch_trl.engine.vllm_server import ServerEngine
from mmsearch_trl.engine.vllm_sync import PublishedWeights, ServerSync
from mmsearch_trl.engine.weight_files import Sent, save_adapter, save_weights, sync_folder
from mmsearch_trl.engine.weight_sync import sampler_weights
from mmsearch_trl.trainer.engines import vocabulary
from mmsearch_trl.trainer.nccl import NcclSender
from mmsearch_trl.trainer.vllm_options import check_server, num_bytes, policy, sends_adapter, server_urls
from mmsearch_trl.trainer.weight_version import WeightVersion


if TYPE_CHECKING:
    from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_FULL, _ADAPTER = "full", "adapter"

T = TypeVar("T")


class ServerRollouts:
    """Rollouts on vLLM servers, to which every rank talks by itself; rank 0 alone gives them weights."""

    def __init__(self, trainer: MMSearchGRPOTrainer) -> None:
        args = trainer.args
        self._trainer = trainer
        self._urls = server_urls(args)
        self._watch = WeightVersion(trainer)
        self._resources = ExitStack()
        self._engine = ServerEngine(
            self._urls,
            vocabulary(trainer),
            request_seconds=args.vllm_request_timeout,
            patience_seconds=args.vllm_server_timeout,
        )
        clients = [VLLMClient(url, request_seconds=args.vllm_server_timeout) for url in self._urls]
        self._sync = ServerSync(clients, patience_seconds=args.vllm_server_timeout)
        self._clients = clients
        infos = self._on_rank_0(self._examine)
        self.max_model_len: int | None = min(info.max_model_len for info in infos)
        ranks = [info.max_lora_rank for info in infos]
        self._adapter = sends_adapter(trainer, None if None in ranks else min(rank for rank in ranks if rank))
        self._run = self._on_rank_0(lambda: uuid.uuid4().hex[:8])
        if self._adapter:
            self._on_rank_0(self._check_base)
        self._nccl: NcclSender | None = None
        if not self._adapter and trainer.accelerator.device.type == "cuda" and _all_take_nccl(infos):
            self._nccl = NcclSender(self._urls, trainer.accelerator, args.vllm_group_port)
        local = all(urlsplit(url).hostname in _LOOPBACK for url in self._urls)
        size = num_bytes(policy(trainer), trainable_only=self._adapter)
        self._folder = trainer.run_dir  # only rank 0 writes
        if trainer.accelerator.is_main_process:
            self._folder = self._resources.enter_context(sync_folder(trainer.run_dir, local=local, num_bytes=size))

    @contextmanager
    def open(self) -> Iterator[ServerEngine]:
        if self._watch.changed():
            self._send_weights()
            self._watch.sent()
        before = self._repairs()
        yield self._engine
        repairs = self._trainer.accelerator.gather(self._repairs() - before).view(-1, 2).sum(dim=0)
        self._trainer.append_metrics(
            {"rollout/engine_retries": float(repairs[0]), "rollout/servers_restored": float(repairs[1])}
        )

    def close(self) -> None:
        loop = self._trainer.event_loop
        loop.run(self._sync.close())
        loop.run(self._engine.close())
        for client in self._clients:
            loop.run(client.close())
        self._resources.close()

    def _repairs(self) -> torch.Tensor:
        """Turns that were tried again, and servers that were given lost weights back."""
        return torch.tensor([self._engine.retries, self._sync.restored], device=self._trainer.accelerator.device)

    def _send_weights(self) -> None:
        trainer, number = self._trainer, self._watch.count + 1
        main = trainer.accelerator.is_main_process
        version = f"{_ADAPTER if self._adapter else _FULL}-{self._run}-{number}"
        started = time.perf_counter()
        sent: Sent | None = None
        if self._adapter:
            sent = save_adapter(policy(trainer), self._folder, number, write=main)
        elif self._nccl is None:
            sent = save_weights(sampler_weights(policy(trainer)), self._folder, number, write=main)
        else:
            self._nccl.send(policy(trainer))
        published = PublishedWeights(version=version, folder=sent.path if sent else None, adapter=self._adapter)
        self._on_rank_0(lambda: trainer.event_loop.run(self._sync.publish(published)))
        self._engine.expect(version, published.model)
        trainer.append_metrics({"sync/seconds": time.perf_counter() - started})
        trainer.append_metrics({"sync/bytes": float(sent.num_bytes)} if sent else {})

    def _examine(self) -> list[ServerInfo]:
        trainer = self._trainer

        async def examine(client: VLLMClient) -> ServerInfo:
            await wait_until_healthy(client, trainer.args.vllm_server_timeout)
            return await client.info()

        infos = [trainer.event_loop.run(examine(client)) for client in self._clients]
        for client, info in zip(self._clients, infos, strict=True):
            check_server(client.url, info, trainer.args.temperature)
        return infos

    def _check_base(self) -> None:
        """An adapter needs the base weights that the server was started with."""
        for client in self._clients:
            version = self._trainer.event_loop.run(client.weight_version())
            if version.startswith(_FULL):
                raise EngineError(f"{client.url} holds the weights of another run; an adapter needs it restarted")

    def _on_rank_0(self, work: Callable[[], T]) -> T:
        """What `work` returns on rank 0, on every rank; its error is every rank's."""
        outcome: list = [None, None]
        if self._trainer.accelerator.is_main_process:
            try:
                outcome[0] = work()
            except EngineError as error:
                outcome[1] = str(error)
        broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise EngineError(outcome[1])
        return outcome[0]


def _all_take_nccl(infos: list[ServerInfo]) -> bool:
    return all(info.weight_transfer == "nccl" for info in infos)
