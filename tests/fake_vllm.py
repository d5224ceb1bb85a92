"""A server with vLLM's endpoints and no model: it remembers what it was asked, and fails when it is told to."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


GENERATE = "/inference/v1/generate"


def configuration(**changes: Any) -> dict[str, Any]:
    """The part of `/server_info` that is read, of a server on a GPU."""
    config: dict[str, Any] = {
        "model_config": {"model": "some/model", "max_model_len": 1024, "logprobs_mode": "raw_logprobs"},
        "lora_config": None,
        "weight_transfer_config": None,
        "scheduler_config": {"enable_chunked_prefill": True},
        "parallel_config": {"worker_extension_cls": ""},
        "device_config": {"device": "cuda"},
    }
    return config | changes


class FakeVLLM:
    """
    Attributes:
        calls: Path and body of every request that changed something, in order.
        asked: Requests of any kind.
        keys: The `Authorization` headers seen.
        away: Whether everything is answered with HTTP 503.
        hanging: Whether turns are never answered.
        dropping: Whether turns end with a closed connection.
        spoiled: By path, HTTP status and text of the answers that come before the usual ones.
        resets_refused: How often the prefix cache is still in use.
        takes_adapters: Whether the endpoints for adapters exist.
    """

    def __init__(self, **config: Any) -> None:
        self.config = configuration(**config)
        self.calls: list[tuple[str, Any]] = []
        self.keys: set[str | None] = set()
        self.spoiled: dict[str, list[tuple[int, str]]] = {}
        self.asked = self.resets_refused = 0
        self.away = self.hanging = self.dropping = False
        self.takes_adapters = self.takes_questions = True
        self.metrics = ""
        self.restart()

    def restart(self) -> None:
        self.version = "default"
        self.adapters: dict[str, str] = {}

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.calls]

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """The server's address, while it is open."""
        app = web.Application(middlewares=[self._guard])
        app.add_routes([web.get(path, handler) for path, handler in self._reading().items()])
        app.add_routes([web.post(path, handler) for path, handler in self._changing().items()])
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield site.name
        finally:
            await runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.asked += 1
        self.keys.add(request.headers.get("Authorization"))
        if self.away:
            return web.Response(status=503, text="away")
        if self.spoiled.get(request.path):
            status, text = self.spoiled[request.path].pop(0)
            return web.Response(status=status, text=text)
        if request.method == "POST":
            self.calls.append((request.path, await request.json() if request.can_read_body else None))
        return await handler(request)

    def _reading(self) -> dict[str, Any]:
        async def health(request: web.Request) -> web.Response:
            return web.Response()

        async def server_info(request: web.Request) -> web.Response:
            if request.query.get("config_format") != "json" or not self.takes_questions:
                return _refusal(404, "Not Found")
            return web.json_response({"vllm_config": self.config})

        async def weight_info(request: web.Request) -> web.Response:
            return web.json_response({"weight_version": self.version})

        async def metrics(request: web.Request) -> web.Response:
            return web.Response(text=self.metrics)

        return {"/health": health, "/server_info": server_info, "/weight_info": weight_info, "/metrics": metrics}

    def _changing(self) -> dict[str, Any]:
        async def nothing(request: web.Request) -> web.Response:
            return web.Response()

        return {
            GENERATE: self._generate,
            "/update_weight_version": self._name,
            "/collective_rpc": self._rpc,
            "/v1/load_lora_adapter": self._load,
            "/v1/unload_lora_adapter": self._unload,
            "/reset_prefix_cache": self._reset,
            "/reset_mm_cache": nothing,
            "/reset_encoder_cache": nothing,
        }

    async def _generate(self, request: web.Request) -> web.Response:
        if self.hanging:
            await asyncio.sleep(3600)
        if self.dropping:
            assert request.transport is not None
            request.transport.close()
        body = await request.json()
        return web.json_response({"prompt_token_ids": body["token_ids"], "choices": []})

    async def _name(self, request: web.Request) -> web.Response:
        self.version = (await request.json())["new_version"]
        return web.json_response({"success": True, "new_version": self.version})

    async def _rpc(self, request: web.Request) -> web.Response:
        return web.json_response({"results": [None]})

    async def _load(self, request: web.Request) -> web.Response:
        body = await request.json()
        name = body["lora_name"]
        if not self.takes_adapters:
            return _refusal(404, "Not Found")
        if name in self.adapters:
            return _refusal(400, f"The lora adapter '{name}' has already been loaded.")
        self.adapters[name] = body["lora_path"]
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        if self.adapters.pop(name, None) is None:
            return _refusal(404, f"The lora adapter '{name}' cannot be found.")
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _reset(self, request: web.Request) -> web.Response:
        self.resets_refused -= 1
        return web.json_response({"success": self.resets_refused < 0})


def _refusal(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "code": status}}, status=status)
