"""One vLLM server over HTTP: the few endpoints that rollouts and weight sync need, with typed errors.

Served by vLLM 0.30 and 0.31 (`mmsearch vllm` starts one): `/inference/v1/generate` takes token ids and raw images;
the endpoints for weights, caches and server information exist with VLLM_SERVER_DEV_MODE=1. Neither a request's body
nor the API key is ever part of a message.
"""

import asyncio
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from mmsearch_trl.core.errors import ContextOverflow, EngineError
from mmsearch_trl.engine.vllm_key import KEY_VARIABLE


_MESSAGE_LENGTH = 300
_IMAGE_DATA = re.compile(r"data:[\w/+.-]*(;base64)?,[\w+/=%-]*")
_KEEP_ALIVE_SECONDS = 3.0
"""Less than the 5 s after which the server closes an idle connection, so that a request never meets a closed one."""


class ServerUnavailable(EngineError):
    """The server cannot be reached, took too long, or broke over the request: worth another attempt."""


class UnknownImage(EngineError):
    """The server has not seen an image that was named by its key alone."""


class UnknownModel(EngineError):
    """The server does not have the model or adapter that was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What a server was started with.

    Attributes:
        model: Path or name of its model.
        max_model_len: Tokens of prompt and completion together.
        logprobs_mode: vLLM's; `raw_logprobs` are those of the full softmax at temperature 1.
        max_lora_rank: None when it serves no adapters.
        weight_transfer: Backend through which it takes weights, such as `nccl`; None for files only.
        chunked_prefill: Whether it cuts long prompts into pieces.
        worker_extension: Class mixed into its workers, "" for none.
        device: `cpu` or `cuda`.
        max_images: Of one prompt; None where it says nothing of them.
    """

    model: str
    max_model_len: int
    logprobs_mode: str
    max_lora_rank: int | None
    weight_transfer: str | None
    chunked_prefill: bool
    worker_extension: str
    device: str
    max_images: int | None = None

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> "ServerInfo":
        lora, transfer = config["lora_config"], config["weight_transfer_config"]
        multimodal = config["model_config"].get("multimodal_config")
        return cls(
            model=str(config["model_config"]["model"]),
            max_model_len=int(config["model_config"]["max_model_len"]),
            logprobs_mode=str(config["model_config"]["logprobs_mode"]),
            max_lora_rank=int(lora["max_lora_rank"]) if lora else None,
            weight_transfer=str(transfer["backend"]) if transfer else None,
            chunked_prefill=bool(config["scheduler_config"]["enable_chunked_prefill"]),
            worker_extension=str(config["parallel_config"]["worker_extension_cls"]),
            device=str(config["device_config"]["device"]),
            max_images=images_per_prompt((multimodal or {}).get("limit_per_prompt") or {}),
        )


def images_per_prompt(limits: Mapping[str, Any]) -> int | None:
    """What vLLM's `limit_mm_per_prompt` says of images; None where it says nothing."""
    limit: Any = limits.get("image")
    return limit.get("count") if isinstance(limit, Mapping) else limit


class VLLMClient:
    """Requests to one server; every call has a time limit and raises an `EngineError` when it fails.

    Args:
        url: Such as `http://127.0.0.1:8000`.
        request_seconds: Limit of one turn, its waiting in the server's queue included.
        control_seconds: Limit of one call that is not a turn.
    """

    def __init__(self, url: str, *, request_seconds: float, control_seconds: float = 120.0) -> None:
        self.url = url.rstrip("/")
        self._request_seconds = request_seconds
        self._control_seconds = control_seconds
        self._session: aiohttp.ClientSession | None = None

    async def generate(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of `/inference/v1/generate`.

        Raises:
            ServerUnavailable, UnknownImage, UnknownModel, ContextOverflow: see there.
            EngineError: the server refused the request.
        """
        return await self._call("POST", "/inference/v1/generate", json=body, seconds=self._request_seconds)

    async def healthy(self) -> bool:
        try:
            await self._call("GET", "/health", seconds=10.0)
        except EngineError:
            return False
        return True

    async def info(self) -> ServerInfo:
        """What the server was started with.

        Raises:
            EngineError: it has no such endpoint.
        """
        try:
            answer = await self._call("GET", "/server_info?config_format=json")
        except UnknownModel as error:
            raise EngineError(
                f"{self.url} does not tell its configuration; start it with VLLM_SERVER_DEV_MODE=1 (`mmsearch vllm`)"
            ) from error
        try:
            return ServerInfo.parse(answer["vllm_config"])
        except KeyError as error:
            raise EngineError(f"{self.url} does not tell its {error}: is it vLLM 0.30 or 0.31?") from error

    async def weight_version(self) -> str:
        """The name last given to its weights; a server that was started anew has `default`."""
        return str((await self._call("GET", "/weight_info", seconds=10.0))["weight_version"])

    async def name_weights(self, version: str) -> None:
        await self._call("POST", "/update_weight_version", json={"new_version": version})

    async def load_weights(self, folder: str) -> None:
        """Have every worker read full weights from a folder that the server can see."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
        await self._call("POST", "/collective_rpc", json=body)
        if (await self.info()).device == "cpu":
            await self._call("POST", "/collective_rpc", json={"method": "repack_heads"})

    async def load_adapter(self, name: str, folder: str) -> None:
        """Have the server take an adapter; one of this name that it holds already stays as it is."""
        try:
            await self._call("POST", "/v1/load_lora_adapter", json={"lora_name": name, "lora_path": folder})
        except EngineError as error:  # an earlier attempt may have failed after this call
            if "has already been loaded" not in str(error):
                raise

    async def unload_adapter(self, name: str) -> None:
        await self._call("POST", "/v1/unload_lora_adapter", json={"lora_name": name})

    async def reset_caches(self) -> None:
        """Drop everything computed from earlier weights: KV of prompts, processed images, encoded images.

        Raises:
            EngineError: the prefix cache is in use, by requests that are still running.
        """
        answer = await self._call("POST", "/reset_prefix_cache")
        if not answer.get("success", True):
            raise EngineError(f"{self.url} could not reset its prefix cache: requests are still running on it")
        await self._call("POST", "/reset_mm_cache")
        await self._call("POST", "/reset_encoder_cache")

    async def metrics(self) -> dict[str, float]:
        """Sums over the server's engines of every Prometheus sample that has a plain number, by metric name."""
        text = (await self._call("GET", "/metrics", seconds=10.0))["text"]
        totals: dict[str, float] = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                sample, _, value = line.rpartition(" ")
                name = sample.partition("{")[0]
                totals[name] = totals.get(name, 0.0) + float(value)
        return totals

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _call(self, method: str, path: str, *, json: Any = None, seconds: float | None = None) -> dict[str, Any]:
        limit = aiohttp.ClientTimeout(total=seconds or self._control_seconds)
        try:
            async with self._connected().request(method, self.url + path, json=json, timeout=limit) as response:
                text = await response.text()
                if response.status == 200:
                    is_json = response.content_type == "application/json"
                    return await response.json() if is_json else {"text": text}
        except TimeoutError as error:
            raise ServerUnavailable(f"{self.url}{path} did not answer within {limit.total:.0f} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ServerUnavailable(f"{self.url}{path}: {type(error).__name__}: {error}") from error
        raise self._refusal(path, response.status, text)

    def _refusal(self, path: str, status: int, text: str) -> EngineError:
        if status == 400 and "Cache miss" in text:
            return UnknownImage(f"{self.url} does not have an image of the request")
        if status == 400 and "longer than the maximum model length" in text:
            return ContextOverflow(f"the prompt is longer than the window of {self.url}")
        message = f"{self.url}{path} answered HTTP {status}: {_quoted(text)}"
        if status == 404:
            return UnknownModel(message)
        return ServerUnavailable(message) if status in (408, 429) or status >= 500 else EngineError(message)

    def _connected(self) -> aiohttp.ClientSession:
        """One session per client, made on the event loop that uses it; as many connections as there are requests."""
        if self._session is None or self._session.closed:
            key = os.environ.get(KEY_VARIABLE)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS),
                headers={"Authorization": f"Bearer {key}"} if key else None,
            )
        return self._session


def _quoted(text: str) -> str:
    """A server's words, short and without the image or the key that it may repeat."""
    words = _IMAGE_DATA.sub("<image>", " ".join(text.split()))
    if key := os.environ.get(KEY_VARIABLE):
        words = words.replace(key, "<key>")
    return words[:_MESSAGE_LENGTH]


async def wait_until_healthy(client: VLLMClient, seconds: float) -> None:
    """Wait for a server that is starting.

    Raises:
        ServerUnavailable: it was not healthy in time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not await client.healthy():
        if loop.time() >= deadline:
            raise ServerUnavailable(f"no vLLM server was healthy at {client.url} within {seconds:.0f} s")
        await asyncio.sleep(0.5)
