"""Reward servers in threads, one for each template, and requests to them."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from search.over_http import free_port
from search.over_http import post as post_to

from mmsearch_trl.rewards.server import RewardServer
from mmsearch_trl.rewards.verify_pool import VerifyPool
from mmsearch_trl.search.server_guard import GuardedServer


class Started(dict[str, str]):
    """Addresses by template."""

    def __init__(self, pool: VerifyPool, **options: Any) -> None:
        self._pool, self._options = pool, options
        self.running: list[tuple[GuardedServer, threading.Thread]] = []

    def __missing__(self, template: Any) -> str:
        app = RewardServer(self._pool, template=template, **self._options).app
        config = uvicorn.Config(app, host="127.0.0.1", port=free_port(), log_level="critical")
        server = GuardedServer(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        self.running.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        self[template] = f"http://127.0.0.1:{config.port}"
        return self[template]


@contextmanager
def served(pool: VerifyPool, *, compat: bool = True, **options: Any) -> Iterator[Started]:
    started = Started(pool, compat=compat, **options)
    try:
        yield started
    finally:
        for server, thread in started.running:
            server.should_exit = True
            thread.join()


def post(url: str, body: Any, **headers: str) -> tuple[int, Any]:
    return post_to(url, body, "/get_reward", **headers)
