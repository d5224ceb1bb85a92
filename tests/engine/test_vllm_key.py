"""Every endpoint of a vLLM server asks for the key, those that vLLM leaves open too."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from mmsearch_trl.engine.vllm_key import RequireKey


KEY = "sesame"
RIGHT = [(b"host", b"a"), (b"authorization", f"Bearer {KEY}".encode())]
WRONG = [
    *([], [(b"authorization", b"Bearer ")], [(b"authorization", b"Bearer sesam")], [(b"authorization", b"sesame")]),
    *([(b"authorization", b"Basic sesame")], [(b"x-authorization", b"Bearer sesame")]),
    [(b"authorization", b"Bearer wrong"), (b"authorization", b"Bearer sesame")],
    [(b"authorization", b"Bearer \xff\xfe")],
]


def status(scope: dict[str, Any]) -> int:
    """What a request gets; 200 where it reaches the server."""
    sent: list[Any] = []

    async def server(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {}

    asyncio.run(RequireKey(server)({"type": "http", "method": "POST", "headers": []} | scope, receive, send))
    return sent[0].get("status", sent[0].get("code"))


PATHS = [
    *("/collective_rpc", "/server_info", "/reset_prefix_cache", "/sleep", "/wake_up", "/update_weights", "/metrics"),
    *("/pause", "/init_weight_transfer_engine", "/v1/models", "/inference/v1/generate", "/docs", "/openapi.json"),
    *("/tokenize", "/health/", "/health/../collective_rpc", "//health", "/HEALTH", "/", "/ping"),
]


@pytest.mark.parametrize("path", PATHS)
def test_no_endpoint_answers_without_the_key(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    for headers in WRONG:
        assert status({"path": path, "headers": headers}) == 401
        assert status({"path": f"/root{path}", "root_path": "/root", "headers": headers}) == 401
    assert status({"path": path, "headers": RIGHT}) == 200
    assert status({"type": "websocket", "path": path}) == 1008


def test_health_is_everybody_s_and_a_browser_may_ask_what_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    assert status({"path": "/health", "method": "GET"}) == 200
    assert status({"path": "/root/health", "root_path": "/root"}) == 200
    assert status({"path": "/sleep", "method": "OPTIONS"}) == 200


def test_without_a_key_none_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "")
    assert status({"path": "/collective_rpc"}) == 200


def test_vllm_s_process_imports_nothing_else_for_it() -> None:
    code = "import sys, mmsearch_trl.engine.vllm_key; print({'torch', 'trl', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
