"""Rewards from servers, by OpenRLHF's contract: `POST /get_reward` (`server.py` is one of ours).

A batch is parted into as many pieces as there are servers, each a run of neighbours. A server that does not answer, is
too slow, or fails is asked again; one that refuses what it is sent is not.
"""

import asyncio
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from mmsearch_trl.core.errors import RewardError, UserError, shortened
from mmsearch_trl.core.redaction import redacted


REWARD_TOKEN = "MMSEARCH_REWARD_TOKEN"
"""Holds the bearer token of a reward server, for it and for its clients."""
_CHECK_S = 3.0
_PAUSE_S = 1.0
_LARGEST = 100_000_000
"""Bytes of an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteConfig:
    """The `reward.remote:` section of a recipe.

    Raises:
        UserError: A value is out of range, or an address is none.
    """

    url: tuple[str, ...] = field(
        metadata={
            "help": "Reward servers, such as http://127.0.0.1:5000/get_reward; of several each gets its share of a "
            "batch. MMSEARCH_REWARD_TOKEN in the environment is sent as a bearer token."
        }
    )
    score_key: str = field(default="rewards", metadata={"help": "Under which key of the answer the rewards stand."})
    timeout_s: float = field(default=180.0, metadata={"help": "Seconds that one request may take."})
    tries: int = field(
        default=5, metadata={"help": "How often a request is sent before the run ends, a second apart."}
    )

    def __post_init__(self) -> None:
        if not self.url:
            raise UserError("reward.remote.url names no server")
        for url in self.url:
            try:
                parts = urlsplit(url)
                usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
            except ValueError:
                usable = False
            if not usable:
                raise UserError(
                    f"reward.remote.url: {redacted(url)!r:.200} is no address such as http://host:5000/get_reward"
                )
        if not self.timeout_s > 0:
            raise UserError(f"reward.remote.timeout_s must be over 0, got {self.timeout_s!r}")
        if self.tries < 1:
            raise UserError(f"reward.remote.tries must be at least 1, got {self.tries!r}")


class RemoteReward:
    """Rewards of all servers, as a coroutine function in TRL's signature."""

    __name__ = "remote"

    def __init__(self, config: RemoteConfig) -> None:
        self._config = config

    async def __call__(
        self,
        prompts: Sequence[Any],
        queries: Sequence[str],
        answers: Sequence[Sequence[str]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Reward each completion, `(n,)`; means of what else a server says of each are logged, `reward/remote/<key>`.

        Raises:
            RewardError: a server gives none.
        """
        labels = [str(next(iter(golds), "")) for golds in answers or [()] * len(prompts)]
        texts = [json.dumps(prompt, ensure_ascii=False) for prompt in prompts]
        size = -(-len(texts) // len(self._config.url))
        pieces = [slice(start, start + size) for start in range(0, len(texts), size)] if texts else []
        bodies = [{"query": list(queries[each]), "prompts": texts[each], "labels": labels[each]} for each in pieces]
        async with _session(self._config.timeout_s) as session:
            answered = await asyncio.gather(
                *(self._ask(session, url, body) for url, body in zip(self._config.url, bodies, strict=False))
            )
        if log_metric is not None:
            others = set.intersection(*map(set, answered)) - {self._config.score_key} if answered else set()
            for key in sorted(others):
                values = [value for piece in answered for value in piece[key]]
                log_metric(f"reward/remote/{key}", sum(values) / len(values))
        return [reward for piece in answered for reward in piece[self._config.score_key]]

    async def _ask(self, session: aiohttp.ClientSession, url: str, body: Mapping[str, list[str]]) -> dict[str, Any]:
        """The lists of numbers of an answer, by their keys.

        Raises:
            RewardError: all tries failed, or the server refused the request.
        """
        why = ""
        for number in range(self._config.tries):
            if number:
                await asyncio.sleep(_PAUSE_S)
            try:
                async with session.post(url, json=body, allow_redirects=False) as response:
                    content = await _content(response)
            except TimeoutError:
                why = f"no answer within {self._config.timeout_s:g} s"
                continue
            except (aiohttp.ClientError, OSError) as error:
                why = _reason(error)
                continue
            if response.status == 200:
                try:
                    return self._lists(content, len(body["query"]))
                except ValueError as error:
                    why = str(error)
                    continue
            why = f"status {response.status}: {_words(content)}"
            if response.status < 500 and response.status not in (408, 429):
                raise RewardError(f"the reward server {redacted(url)} refuses what it is sent, {why}")
        raise RewardError(f"the reward server {redacted(url)} gave no reward in {self._config.tries} tries: {why}")

    def _lists(self, content: bytes, count: int) -> dict[str, Any]:
        """
        Raises:
            ValueError: the rewards are not there, or are not one for each query.
        """
        key = self._config.score_key
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            raise ValueError(f"the answer is no JSON: {_words(content)}") from None
        if not isinstance(answer, dict) or key not in answer:
            raise ValueError(f"the answer has no {key!r} (reward.remote.score_key)")
        if not _are_numbers(answer[key], count, (int, float, type(None))):
            raise ValueError(f"{key!r} of the answer is no list of {count} numbers")
        return {
            name: given for name, given in answer.items() if name == key or _are_numbers(given, count, (int, float))
        }


async def check_servers(config: RemoteConfig) -> None:
    """See, in seconds, that every server is there.

    Raises:
        UserError: one is not, wants a token, or does not know the path.
    """
    async with _session(_CHECK_S) as session:
        await asyncio.gather(*(_check(session, url) for url in config.url))


async def _check(session: aiohttp.ClientSession, url: str) -> None:
    try:
        async with session.get(url, allow_redirects=False) as response:
            status = response.status
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        why = f"no answer within {_CHECK_S:g} s" if isinstance(error, TimeoutError) else _reason(error)
        raise UserError(
            f"reward.remote.url: {redacted(url)} is not there ({why}): start it, such as by `mmsearch serve reward`"
        ) from error
    if status in (401, 403):
        raise UserError(f"reward.remote.url: {redacted(url)} wants a token: set {REWARD_TOKEN} in the environment")
    if status == 404:
        raise UserError(f"reward.remote.url: {redacted(url)} has no such path: most end in /get_reward")


def _session(seconds: float) -> aiohttp.ClientSession:
    token = os.environ.get(REWARD_TOKEN)
    return aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {token}"} if token else {},
        timeout=aiohttp.ClientTimeout(total=seconds),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def _content(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for part in response.content.iter_chunked(1 << 16):
        content += part
        if len(content) > _LARGEST:
            raise aiohttp.ClientPayloadError(f"the answer is longer than {_LARGEST} bytes")
    return bytes(content)


def _are_numbers(value: Any, count: int, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, list) and len(value) == count and all(isinstance(each, kinds) for each in value)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {redacted(str(error)):.200}".removesuffix(": ")


def _words(content: bytes) -> str:
    return shortened(redacted(" ".join(content[:2000].decode("utf-8", "replace").split())), 200)
