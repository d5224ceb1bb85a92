"""Rollouts on vLLM servers: token ids in, token ids out, every turn a request of its own.

* An image travels once to each server: the first request that needs it announces it, with its bytes and a single
  sampled token, which also leaves the shared prompt in the prefix cache; all others name it by its key.
* Turns with the same affinity go to one server, where their prefix is cached; a new affinity goes where there is least
  to do, and one whose server is away goes elsewhere.
* A turn whose server breaks is tried again, a bounded number of times, and then fails alone. Its seed is the same.
* No turn is sampled from weights other than those of the last sync: a server that was restarted has lost its
  `weight_version`, and gets no turn before it has been given the weights again (`vllm_sync.py`).
"""

import asyncio
import base64
import io
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from PIL import Image

from mmsearch_trl.core.completion import Completion, FinishReason, SamplingParams
from mmsearch_trl.core.errors import EngineError, UserError
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.engine.vllm_client import ServerUnavailable, UnknownImage, UnknownModel, VLLMClient
from mmsearch_trl.engine.vllm_requests import Vocabulary, check_echo, compact, sampling_fields


_TRUST_SECONDS = 5.0
"""A server that had the right weights this long ago has them still: starting one takes longer."""
_POLL_SECONDS = 0.5
_PAUSE_SECONDS = 0.1


class Server:
    """What this process knows of one server."""

    def __init__(self, client: VLLMClient) -> None:
        self.client = client
        self.in_flight = 0
        self.images: dict[str, asyncio.Future[None]] = {}
        """By key; done once the server has the image."""
        self.away = False
        self.verified = -_TRUST_SECONDS
        self.verifying = asyncio.Lock()

    def forget(self) -> None:
        """Take nothing for granted any more: the server was restarted, or its caches were reset."""
        self.images = {}
        self.verified = -_TRUST_SECONDS


class ServerEngine:
    """An engine over one or more vLLM servers that hold the same model.

    Args:
        urls: Base addresses.
        request_seconds: Limit of one attempt at a turn.
        patience_seconds: How long a turn waits for a server that is away.
        attempts: Tries of one turn.
    """

    def __init__(
        self,
        urls: Sequence[str],
        vocabulary: Vocabulary,
        *,
        request_seconds: float = 600.0,
        patience_seconds: float = 240.0,
        attempts: int = 4,
    ) -> None:
        if not urls:
            raise UserError("ServerEngine needs the address of at least one vLLM server.")
        self.servers = [Server(VLLMClient(url, request_seconds=request_seconds)) for url in urls]
        self._vocabulary = vocabulary
        self._patience = patience_seconds
        self._attempts = attempts
        self._homes: dict[str, Server] = {}
        self._version: str | None = None
        self._model: str | None = None
        self._busy = _Busy()
        self.retries = 0
        """Attempts that failed and were made again."""
        self.images_sent = 0
        """Images that travelled with their bytes."""

    @property
    def busy_seconds(self) -> float:
        """Time during which at least one request was at a server."""
        return self._busy.seconds

    def expect(self, version: str | None, model: str | None = None) -> None:
        """From here on sample from these weights only; what servers cached for earlier ones is gone.

        Args:
            version: What the servers' weights were named; None takes servers as they are.
            model: The adapter to ask for; None is the model itself.
        """
        self._version, self._model = version, model
        self._homes = {}
        for server in self.servers:
            server.forget()

    async def generate(
        self, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: SamplingParams
    ) -> Completion:
        for attempt in range(1, self._attempts + 1):
            server = await self._choose(sampling.affinity)
            try:
                return await self._turn(server, token_ids, images, sampling)
            except (ServerUnavailable, UnknownModel) as error:
                server.away = True  # until it has shown its weights again
                if attempt == self._attempts:
                    raise EngineError(f"gave up after {attempt} attempts: {error}") from error
                self.retries += 1
                await asyncio.sleep(_PAUSE_SECONDS * attempt)
        raise AssertionError("unreachable")

    async def close(self) -> None:
        await asyncio.gather(*(server.client.close() for server in self.servers))

    async def _turn(
        self, server: Server, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: SamplingParams
    ) -> Completion:
        prompt = compact(token_ids, self._vocabulary.image_pad_id)
        fields = sampling_fields(sampling, self._vocabulary)
        server.in_flight += 1
        self._busy.enter()
        try:
            for resend in (False, True):
                await self._announce(server, prompt, images, fields)
                try:
                    answer = await server.client.generate(self._body(prompt, images, fields))
                except UnknownImage:  # it fell out of the server's cache
                    if resend:
                        raise
                    for image in images:
                        server.images.pop(image.key, None)
                else:
                    check_echo(token_ids, answer.get("prompt_token_ids"))
                    return _completion(answer)
        finally:
            self._busy.leave()
            server.in_flight -= 1
        raise AssertionError("unreachable")

    async def _announce(
        self, server: Server, prompt: list[int], images: Sequence[ImageInput], fields: dict[str, Any]
    ) -> None:
        """Return when the server has every image; bytes are sent of those that nobody has sent or is sending."""
        while True:
            known = server.images
            under_way = [known[image.key] for image in images if image.key in known and not known[image.key].done()]
            if under_way:
                await asyncio.wait(under_way)
                continue
            new = {image.key: image for image in images if image.key not in known}
            if not new:
                return
            arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            known |= dict.fromkeys(new, arrived)
            delivered = False
            try:
                urls = {key: await asyncio.to_thread(_data_url, image.image) for key, image in new.items()}
                await server.client.generate(self._body(prompt, images, fields | {"max_tokens": 1}, urls))
                self.images_sent += len(new)
                delivered = True
                return
            finally:
                if not delivered:
                    for key in new:
                        known.pop(key, None)
                arrived.set_result(None)  # who waited looks again

    def _body(
        self,
        prompt: list[int],
        images: Sequence[ImageInput],
        fields: dict[str, Any],
        urls: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """A request; an image without a URL is named by its key alone."""
        body: dict[str, Any] = {"token_ids": prompt, "sampling_params": fields, "return_token_ids": True}
        if self._model is not None:
            body["model"] = self._model
        if images:
            body["content_parts"] = [
                {"type": "image_url", "url": urls.get(image.key), "uuid": image.key} for image in images
            ]
        return body

    async def _choose(self, affinity: str) -> Server:
        """The server of this affinity, or the one with least to do; waits for one that has the right weights.

        Raises:
            EngineError: there was none for `patience_seconds`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        while True:
            home = self._homes.get(affinity)
            order = sorted(self.servers, key=lambda server: (server is not home, server.away, server.in_flight))
            for server in order:
                if await self._ready(server):
                    self._homes[affinity] = server
                    return server
            if loop.time() >= deadline:
                urls = ", ".join(server.client.url for server in self.servers)
                raise EngineError(f"no vLLM server with the current weights within {self._patience:.0f} s: {urls}")
            await asyncio.sleep(_POLL_SECONDS)

    async def _ready(self, server: Server) -> bool:
        """Whether the server is there with the weights of the last sync; asked once for all who want to know."""
        async with server.verifying:
            if not server.away and time.monotonic() - server.verified < _TRUST_SECONDS:
                return True
            asked = time.monotonic()
            try:
                found = await server.client.weight_version()
            except EngineError:
                server.away = True
                return False
            server.away = self._version not in (None, found)
            if server.away:
                server.forget()
            else:
                server.verified = asked
            return not server.away


def _completion(answer: dict[str, Any]) -> Completion:
    """Read vLLM's answer.

    Raises:
        EngineError: it was aborted, or a token has no log-prob.
    """
    [choice] = answer["choices"]
    reason = choice["finish_reason"]
    if reason not in ("stop", "length"):
        raise EngineError(f"vLLM ended the turn with {reason!r}")
    logprobs = tuple(entry["logprob"] for entry in choice["logprobs"]["content"])
    if len(logprobs) != len(choice["token_ids"]) or None in logprobs:
        raise EngineError("vLLM left out the log-prob of a sampled token")
    return Completion(tuple(choice["token_ids"]), logprobs, FinishReason(reason))


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # without loss: the server must see the pixels that are trained on
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


class _Busy:
    """Total length of the union of overlapping intervals."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open = 0
        self._since = 0.0
        self._total = 0.0

    def enter(self) -> None:
        if self._open == 0:
            self._since = self._clock()
        self._open += 1

    def leave(self) -> None:
        self._open -= 1
        if self._open == 0:
            self._total += self._clock() - self._since

    @property
    def seconds(self) -> float:
        return self._total + (self._clock() - self._since if self._open else 0.0)
