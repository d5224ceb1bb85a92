"""Reward servers in threads, ours for each template and ones that answer as they are told, and requests to them."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import uvicorn
from search.over_http import free_port
from search.over_http import post as post_to

from mmsearch_trl.rewards.server import RewardServer
from mmsearch_trl.rewards.verify_pool import VerifyPool
from mmsearch_trl.search.server_guard import GuardedServer


Answer = Callable[[dict[str, Any], int], tuple[int, Any]]


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


@contextmanager
def fake_server(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Address of a server that answers by `answer(body, number of the request)`, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body | {"token": self.headers.get("Authorization")})
            status, content = answer(body, len(asked))
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/get_reward", asked
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
