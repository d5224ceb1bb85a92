"""Full weights from a GPU trainer to GPU servers over NCCL, through TRL's client of vLLM's weight-transfer engine."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mmsearch_trl.engine.weight_sync import sampler_weights


class NcclSender:
    """Streams weights to every server; every rank must call it, since gathering sharded weights is collective.

    Each server makes one NCCL group with rank 0, on a port of its own from `group_port` on.
    """

    def __init__(self, urls: Sequence[str], accelerator: Any, group_port: int) -> None:
        self._urls = urls
        self._accelerator = accelerator
        self._group_port = group_port
        self._clients: list[Any] = []
        self._metadata: list[tuple[str, str, list[int]]] | None = None

    def send(self, model: nn.Module) -> None:
        """Stream the weights, one pass over the model per server."""
        main = self._accelerator.is_main_process
        if main:
            self._connect()
        if self._metadata is None:  # a server must know every tensor before the first arrives
            self._metadata = [
                (name, str(weight.dtype).removeprefix("torch."), list(weight.shape))
                for name, weight in sampler_weights(model)
            ]
        with torch.no_grad():
            for number in range(len(self._urls)):
                weights = sampler_weights(model)
                if main:
                    self._clients[number].update_named_params(self._metadata, weights)
                for _ in weights:  # the other ranks take part in the gathering
                    pass

    def _connect(self) -> None:
        """Join each server's group; once, for a server that was restarted needs a new run."""
        if self._clients:
            return
        from trl.generation.vllm_client import VLLMClient

        for number, url in enumerate(self._urls):
            client = VLLMClient(base_url=url, group_port=self._group_port + number)
            client.init_communicator(device=self._accelerator.device)
            self._clients.append(client)
