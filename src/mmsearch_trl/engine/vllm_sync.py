"""Gives vLLM servers the trainer's weights, and gives them again to a server that lost them.

Weights reach a server as files that it can read (tmpfs on one machine, a shared disk otherwise): the adapter alone
where vLLM can serve it, else all weights; or over NCCL, from a trainer and to servers that have it. After every sync
the prefix, multimodal and encoder caches are reset: all three hold what earlier weights computed, and vLLM resets none
of them by itself. Then the weights get their name, which is what engines look for (`vllm_server.py`).
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mmsearch_trl.core.errors import EngineError
from mmsearch_trl.engine.vllm_client import ServerUnavailable, UnknownModel, VLLMClient


_WATCH_SECONDS = 2.0
_DRAIN_SECONDS = 20.0
"""How long requests that were abandoned may take to leave a server."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedWeights:
    """Weights as servers read them.

    Attributes:
        version: Their name; no two syncs of any run share one.
        folder: Where they lie; None when they travelled over NCCL, and cannot be read again.
        adapter: Whether the folder holds a LoRA adapter, to be asked for under `version`.
    """

    version: str
    folder: Path | None
    adapter: bool

    @property
    def model(self) -> str | None:
        """The model name that requests give."""
        return self.version if self.adapter else None


class ServerSync:
    """Keeps servers at the published weights; one process of a run has one.

    Args:
        patience_seconds: How long a sync waits for a server that is starting.
    """

    def __init__(self, clients: Sequence[VLLMClient], *, patience_seconds: float) -> None:
        self._clients = clients
        self._patience = patience_seconds
        self._published: PublishedWeights | None = None
        self._adapters: dict[str, str] = {}
        """By URL, the adapter that the server holds."""
        self._watch: asyncio.Task[None] | None = None
        self.restored = 0
        """Servers that were given their weights again after a restart."""

    async def publish(self, weights: PublishedWeights) -> None:
        """Bring every server to these weights.

        A server that is away is left out, and gets them when it is back, as long as one server has them.

        Raises:
            EngineError: no server took the weights, or one refused them.
        """
        await self._stop_watching()
        self._published = weights
        outcomes = await asyncio.gather(
            *(self._apply_patiently(client, weights) for client in self._clients), return_exceptions=True
        )
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        refusals = [error for error in errors if not isinstance(error, ServerUnavailable)]
        if refusals or len(errors) == len(self._clients):
            raise (refusals or errors)[0]
        for error in errors:
            logger.warning("A rollout goes on without a server: %s", error)
        self._watch = asyncio.create_task(self._restore_lost())

    async def close(self) -> None:
        await self._stop_watching()

    async def _apply_patiently(self, client: VLLMClient, weights: PublishedWeights) -> None:
        """Apply once the server is there; a single server is waited for, one of several is not."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self._patience if len(self._clients) == 1 else 0.0)
        while True:
            try:
                return await self._apply(client, weights)
            except ServerUnavailable:
                if loop.time() >= deadline:
                    raise
                await asyncio.sleep(_WATCH_SECONDS)

    async def _apply(self, client: VLLMClient, weights: PublishedWeights) -> None:
        if weights.adapter:
            await self._apply_adapter(client, weights)
        elif weights.folder is not None:
            await client.load_weights(str(weights.folder))
        await _reset_caches(client)
        await client.name_weights(weights.version)

    async def _apply_adapter(self, client: VLLMClient, weights: PublishedWeights) -> None:
        try:
            await client.load_adapter(weights.version, str(weights.folder))
        except UnknownModel as error:
            raise EngineError(
                f"{client.url} does not take adapters; start it with --enable-lora --max-lora-rank R and "
                f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 (`mmsearch vllm --max_lora_rank R`): {error}"
            ) from error
        before = self._adapters.get(client.url)
        self._adapters[client.url] = weights.version
        if before not in (None, weights.version):
            with suppress(EngineError):  # a server that was restarted does not have it
                await client.unload_adapter(before)

    async def _restore_lost(self) -> None:
        """While a rollout runs: give a server that was restarted its weights back."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            await asyncio.gather(*(self._restore(client) for client in self._clients))

    async def _restore(self, client: VLLMClient) -> None:
        weights = self._published
        assert weights is not None
        try:
            if await client.weight_version() == weights.version:
                return
            if weights.folder is None:
                return  # sent over NCCL: the server waits for the next sync
            await self._apply(client, weights)
        except EngineError:
            return  # still away; the next look is soon
        self.restored += 1
        logger.warning("%s was restarted; it has the current weights again.", client.url)

    async def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
            self._watch = None


async def _reset_caches(client: VLLMClient) -> None:
    """Reset once abandoned requests have left: they hold blocks of the prefix cache."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _DRAIN_SECONDS
    while True:
        try:
            return await client.reset_caches()
        except ServerUnavailable:
            raise
        except EngineError:
            if loop.time() >= deadline:
                raise
            await asyncio.sleep(0.1)
