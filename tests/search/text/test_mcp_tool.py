"""A real MCP server in a process of its own."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from mmsearch_trl.core.errors import SearchError, SearchLost
from mmsearch_trl.core.observation import FailureKind, TextHit
from mmsearch_trl.search.calls.backend_client import CallPolicy
from mmsearch_trl.search.runtime import SearchRuntime
from mmsearch_trl.search.text.mcp_tool import McpSearch


COMMAND = [sys.executable, str(Path(__file__).parent / "mcp_server.py")]


def searching(tool: str, work: Callable[[McpSearch], Awaitable[Any]], **options: Any) -> Any:
    """What `work` comes to; no process of the server is left behind."""

    async def run() -> Any:
        backend = McpSearch(COMMAND, tool, **options)
        try:
            return await work(backend)
        finally:
            await backend.close()

    before = {child.pid for child in psutil.Process().children(recursive=True)}
    result = asyncio.run(run())
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
    return result


async def outcome(backend: McpSearch, query: str = "velm") -> Any:
    try:
        return await backend.search(query, 2)
    except SearchError as error:
        assert "sesame" not in error.failure.message
        return error.failure.kind


def test_rows_are_hits() -> None:
    hits = searching("structured", outcome)
    assert hits == [TextHit(f"velm {number}", "words", "http://a.example") for number in range(2)]


def test_plain_words_are_one_hit_and_the_argument_has_its_own_name() -> None:
    assert searching("plain", outcome, argument="words") == [TextHit("", "about velm")]


def test_searches_share_one_server_and_do_not_wait_for_each_other() -> None:
    async def work(backend: McpSearch) -> float:
        await outcome(backend)
        start = time.monotonic()
        outcomes = await asyncio.gather(*(outcome(backend, str(number)) for number in range(32)))
        assert [hits[0].title for hits in outcomes] == [f"{number} 0" for number in range(32)]
        return time.monotonic() - start

    assert searching("structured", work) < 32 * 0.2 / 4


@pytest.mark.parametrize("tool", ["broken", "dying", "missing"])
def test_a_tool_that_fails_is_unavailable_and_its_words_are_not_told(tool: str) -> None:
    assert searching(tool, outcome) is FailureKind.UNAVAILABLE


def test_a_server_that_died_is_started_again() -> None:
    async def work(backend: McpSearch) -> Any:
        await outcome(backend)
        backend._tool = "dying"
        assert await outcome(backend) is FailureKind.UNAVAILABLE
        backend._tool = "structured"
        return await outcome(backend)

    assert len(searching("structured", work)) == 2


def test_a_server_gets_the_variables_that_are_named_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_KEY", "open")
    monkeypatch.setenv("OTHER_KEY", "secret")
    [hit] = searching("environment", outcome, environment=["STAND_IN_KEY"])
    assert hit.text == "key: open, other: None"
    with pytest.raises(ValueError, match="wants NOT_THERE"):
        McpSearch(COMMAND, "environment", environment=["NOT_THERE"])


def test_a_server_that_cannot_be_started_is_unavailable() -> None:
    async def run() -> Any:
        backend = McpSearch(["/nowhere/at/all"], "search")
        try:
            return await outcome(backend)
        finally:
            await backend.close()

    assert asyncio.run(run()) is FailureKind.UNAVAILABLE


async def readiness(backend: McpSearch) -> str | None:
    try:
        return await backend.check()
    except SearchError as error:
        return error.failure.message


def test_a_server_is_asked_for_its_tool_before_the_first_search() -> None:
    assert searching("structured", readiness) is None
    assert "has no tool missing; it has " in searching("missing", readiness)


def test_a_server_that_is_not_there_is_noticed_before_the_first_search() -> None:
    async def run() -> Any:
        backend = McpSearch(["/nowhere/at/all"], "search")
        try:
            return await readiness(backend)
        finally:
            await backend.close()

    assert "the MCP server failed" in asyncio.run(run())


def test_a_server_that_is_silent_costs_its_call_and_is_left() -> None:
    """It starts, and never says hello."""

    async def run() -> float:
        runtime = SearchRuntime(None, McpSearch(["sleep", "600"], "search"), text_policy=POLICY)
        for _ in range(2):
            observation = await runtime.text_search("velm")
            assert observation.failure is not None
            assert observation.failure.kind in (FailureKind.UNAVAILABLE, FailureKind.TIMEOUT)
        with pytest.raises(SearchLost):
            await runtime.check()
        start = time.monotonic()
        await runtime.disconnect()
        return time.monotonic() - start

    before = {child.pid for child in psutil.Process().children(recursive=True)}
    start = time.monotonic()
    assert asyncio.run(run()) < 6 and time.monotonic() - start < 20
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


POLICY = CallPolicy(timeout_s=1.0, try_timeout_s=1.0, retries=0)
