"""vLLM servers that hold the policy's weights.

Weights are sent when they have changed and not otherwise, in the form that is least to send: the LoRA adapter alone
where vLLM can apply it, else all weights with the adapter merged beside them (`engine/weight_sync.py`). They never go
through a merge in place, as TRL's do: in bf16 that moves the base weights with every step.
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from mmsearch_trl.core.errors import EngineError
from mmsearch_trl.distributed.policy import Policy
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.engine.vllm_client import ServerInfo, VLLMClient, wait_until_healthy
from mmsearch_trl.engine.vllm_requests import Vocabulary
from mmsearch_trl.engine.vllm_server import ServerEngine
from mmsearch_trl.engine.vllm_sync import PublishedWeights, ServerSync
from mmsearch_trl.engine.weight_files import Sent, save_adapter, save_weights, sync_folder
from mmsearch_trl.engine.weight_sync import sampler_weights
from mmsearch_trl.rollout.background_loop import BackgroundLoop
from mmsearch_trl.trainer.sampler.nccl import NcclSender
from mmsearch_trl.trainer.sampler.sampler import OpenEngine, SamplerOptions, SyncStatistics
from mmsearch_trl.trainer.sampler.vllm_options import check_server, sends_adapter
from mmsearch_trl.trainer.sampler.weight_version import WeightVersion


_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_FULL, _ADAPTER = "full", "adapter"


class ServerSampler:
    """Samples on vLLM servers, to which every rank talks by itself; rank 0 alone gives them weights.

    Raises:
        EngineError: a server does not answer, or was started in a way that cannot serve rollouts.
    """

    def __init__(
        self, options: SamplerOptions, policy: Policy, vocabulary: Vocabulary, ranks: Ranks, loop: BackgroundLoop
    ) -> None:
        self._options = options
        self._ranks = ranks
        self._loop = loop
        self._version = WeightVersion(ranks)
        self._resources = ExitStack()
        urls, timeout = options.vllm_server_urls, options.vllm_server_timeout
        self._engine = ServerEngine(
            urls, vocabulary, request_seconds=options.vllm_request_timeout, patience_seconds=timeout
        )
        self._clients = [VLLMClient(url, request_seconds=timeout) for url in urls]
        self._sync = ServerSync(self._clients, patience_seconds=timeout)
        infos = ranks.on_main(self._examine)
        self.max_model_len: int | None = min(info.max_model_len for info in infos)
        limits = [info.max_images for info in infos if info.max_images is not None]
        self.max_images: int | None = min(limits, default=None)
        lora_ranks = [info.max_lora_rank for info in infos if info.max_lora_rank]
        max_rank = min(lora_ranks) if len(lora_ranks) == len(infos) else None
        self._adapter = sends_adapter(policy.model, options.vllm_lora_sync, max_rank)
        self._run = ranks.on_main(lambda: uuid.uuid4().hex[:8])
        if self._adapter:
            ranks.on_main(self._check_base)
        self._nccl: NcclSender | None = None
        takes_nccl = all(info.weight_transfer == "nccl" for info in infos)
        if not self._adapter and takes_nccl and policy.accelerator.device.type == "cuda":
            self._nccl = NcclSender(urls, policy.accelerator, options.vllm_group_port)
        self._folder = Path(options.output_dir)
        if ranks.is_main:  # the others write nothing
            local = all(urlsplit(url).hostname in _LOOPBACK for url in urls)
            size = policy.num_bytes(trainable_only=self._adapter)
            self._folder = self._resources.enter_context(sync_folder(self._folder, local=local, num_bytes=size))

    @contextmanager
    def open(self, policy: Policy) -> Iterator[OpenEngine]:
        statistics = SyncStatistics()
        if self._version.changed(policy):
            self._send_weights(policy, statistics)
            self._version.sent(policy)
        retries, restored = self._engine.retries, self._sync.restored
        yield OpenEngine(self._engine, statistics)
        repairs = self._ranks.sum([self._engine.retries - retries, self._sync.restored - restored])
        statistics.engine_retries, statistics.servers_restored = map(int, repairs)

    def close(self) -> None:
        self._loop.run(self._sync.close())
        self._loop.run(self._engine.close())
        for client in self._clients:
            self._loop.run(client.close())
        self._resources.close()

    def _send_weights(self, policy: Policy, statistics: SyncStatistics) -> None:
        """Give every server the policy's weights in the form that is least to send; a collective call."""
        number, main = self._version.count + 1, self._ranks.is_main
        version = f"{_ADAPTER if self._adapter else _FULL}-{self._run}-{number}"
        started = time.perf_counter()
        sent: Sent | None = None
        if self._adapter:
            sent = save_adapter(policy.model, self._folder, number, write=main)
        elif self._nccl is None:
            sent = save_weights(sampler_weights(policy.model), self._folder, number, write=main)
        else:
            self._nccl.send(policy.model)
        published = PublishedWeights(version=version, folder=sent.path if sent else None, adapter=self._adapter)
        self._ranks.on_main(lambda: self._loop.run(self._sync.publish(published)))
        self._engine.expect(version, published.model)
        statistics.seconds = time.perf_counter() - started
        statistics.num_bytes = sent.num_bytes if sent else None

    def _examine(self) -> list[ServerInfo]:
        async def examine(client: VLLMClient) -> ServerInfo:
            await wait_until_healthy(client, self._options.vllm_server_timeout)
            return await client.info()

        infos = [self._loop.run(examine(client)) for client in self._clients]
        for client, info in zip(self._clients, infos, strict=True):
            check_server(client.url, info, self._options.temperature)
        return infos

    def _check_base(self) -> None:
        """An adapter needs the base weights that the server was started with."""
        for client in self._clients:
            version = self._loop.run(client.weight_version())
            if version.startswith(_FULL):
                raise EngineError(f"{client.url} holds the weights of another run; an adapter needs it restarted")
