"""What servers are told at a sync, in which order, and what happens to those that are away."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from fake_vllm import FakeVLLM

from mmsearch_trl.core.errors import EngineError
from mmsearch_trl.engine import vllm_sync
from mmsearch_trl.engine.vllm_client import ServerUnavailable, VLLMClient
from mmsearch_trl.engine.vllm_sync import PublishedWeights, ServerSync


RESETS = ["/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache"]
LOAD, UNLOAD, NAME = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/update_weight_version"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_sync, "_WATCH_SECONDS", 0.02)
    monkeypatch.setattr(vllm_sync, "_DRAIN_SECONDS", 1.0)


def full(number: int = 1) -> PublishedWeights:
    return PublishedWeights(version=f"full-{number}", folder=Path(f"/weights/{number}"), adapter=False)


def adapter(number: int = 1) -> PublishedWeights:
    return PublishedWeights(version=f"adapter-{number}", folder=Path(f"/adapters/{number}"), adapter=True)


def run(
    use: Callable[[ServerSync, list[FakeVLLM]], Awaitable[None]], *servers: FakeVLLM, patience_seconds: float = 0.0
) -> list[FakeVLLM]:
    """The servers, one if none is given, after `use` and the end of the sync."""
    given = list(servers) or [FakeVLLM()]

    async def inside() -> None:
        async with AsyncExitStack() as stack:
            clients = []
            for server in given:
                client = VLLMClient(await stack.enter_async_context(server.serve()), request_seconds=5)
                stack.push_async_callback(client.close)
                clients.append(client)
            sync = ServerSync(clients, patience_seconds=patience_seconds)
            stack.push_async_callback(sync.close)
            await asyncio.wait_for(use(sync, given), 10)

    asyncio.run(inside())
    return given


def publishing(*weights: PublishedWeights) -> Callable[[ServerSync, list[FakeVLLM]], Awaitable[None]]:
    async def use(sync: ServerSync, servers: list[FakeVLLM]) -> None:
        for each in weights:
            await sync.publish(each)

    return use


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def refused(message: str, weights: PublishedWeights, *servers: FakeVLLM) -> EngineError:
    with pytest.raises(EngineError, match=message) as caught:
        run(publishing(weights), *servers)
    return caught.value


def test_weights_are_loaded_then_caches_reset_then_the_weights_named() -> None:
    [server] = run(publishing(full()))
    assert server.paths == ["/collective_rpc", *RESETS, NAME]
    assert server.calls[0][1]["kwargs"] == {"weights_path": "/weights/1"}
    assert server.version == "full-1"


def test_weights_that_came_over_nccl_are_not_loaded_again() -> None:
    [server] = run(publishing(PublishedWeights(version="full-1", folder=None, adapter=False)))
    assert server.paths == [*RESETS, NAME] and server.version == "full-1"


def test_an_adapter_takes_the_place_of_the_one_before() -> None:
    [server] = run(publishing(adapter(1), adapter(2), adapter(3)))
    assert server.paths == [LOAD, *RESETS, NAME, *[LOAD, UNLOAD, *RESETS, NAME] * 2]
    assert server.adapters == {"adapter-3": "/adapters/3"} and server.version == "adapter-3"


def test_requests_name_the_adapter_and_no_model_otherwise() -> None:
    assert (full().model, adapter().model) == (None, "adapter-1")


def test_every_server_gets_the_weights() -> None:
    for server in run(publishing(full(1), full(2)), FakeVLLM(), FakeVLLM(), FakeVLLM()):
        assert server.version == "full-2"


def test_a_server_that_is_away_gets_the_weights_when_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    async def use(sync: ServerSync, servers: list[FakeVLLM]) -> None:
        here, gone = servers
        gone.away = True
        with caplog.at_level(logging.WARNING):
            await sync.publish(full())
        assert "goes on without a server" in caplog.text
        assert (here.version, gone.version, sync.restored) == ("full-1", "default", 0)
        gone.away = False
        await until(lambda: sync.restored == 1)
        assert gone.paths == ["/collective_rpc", *RESETS, NAME] and gone.version == "full-1"
        assert here.paths.count(NAME) == 1

    run(use, FakeVLLM(), FakeVLLM())


@pytest.mark.parametrize("weights", [full(), adapter()])
def test_a_server_that_was_restarted_gets_its_weights_again(weights: PublishedWeights) -> None:
    async def use(sync: ServerSync, servers: list[FakeVLLM]) -> None:
        await sync.publish(weights)
        for times in (1, 2):
            servers[0].restart()
            await until(lambda times=times: sync.restored == times)
            assert servers[0].version == weights.version
        await asyncio.sleep(0.1)
        assert sync.restored == 2

    [server] = run(use)
    assert UNLOAD not in server.paths
    assert server.adapters == ({"adapter-1": "/adapters/1"} if weights.adapter else {})


def test_weights_that_came_over_nccl_cannot_be_given_again() -> None:
    async def use(sync: ServerSync, servers: list[FakeVLLM]) -> None:
        await sync.publish(PublishedWeights(version="full-1", folder=None, adapter=False))
        servers[0].restart()
        asked = servers[0].asked
        await until(lambda: servers[0].asked > asked + 2)
        assert servers[0].version == "default" and sync.restored == 0

    run(use)


def test_the_only_server_is_waited_for() -> None:
    async def use(sync: ServerSync, servers: list[FakeVLLM]) -> None:
        [server] = servers
        server.away = True
        publishing = asyncio.create_task(sync.publish(full()))
        await until(lambda: server.asked > 2)
        assert not publishing.done()
        server.away = False
        await publishing
        assert server.version == "full-1"

    run(use, patience_seconds=5)


@pytest.mark.parametrize("count", [1, 3])
def test_an_error_says_that_all_servers_are_away(count: int) -> None:
    servers = [FakeVLLM() for _ in range(count)]
    for server in servers:
        server.away = True
    assert isinstance(refused("503: away", full(), *servers), ServerUnavailable)


@pytest.mark.parametrize("others", [0, 1])
def test_a_server_without_adapters_is_told_how_to_start(others: int) -> None:
    plain, here = FakeVLLM(), [FakeVLLM() for _ in range(others)]
    plain.takes_adapters = False
    error = refused("start it with --enable-lora --max-lora-rank R", adapter(), *here, plain)
    assert "mmsearch vllm --max_lora_rank R" in str(error)


def test_a_refusal_is_told_before_an_absence() -> None:
    gone, plain = FakeVLLM(), FakeVLLM()
    gone.away, plain.takes_adapters = True, False
    error = refused("--enable-lora", adapter(), gone, FakeVLLM(), plain)
    assert not isinstance(error, ServerUnavailable)


def test_weights_that_a_server_cannot_read_are_an_error() -> None:
    server = FakeVLLM()
    server.spoiled["/collective_rpc"] = [(400, "no such folder")]
    refused("400: no such folder", full(), server, FakeVLLM())
    assert server.version == "default"


def test_caches_in_use_are_reset_once_they_are_free() -> None:
    server = FakeVLLM()
    server.resets_refused = 3
    run(publishing(full()), server)
    assert server.paths == ["/collective_rpc", *[RESETS[0]] * 3, *RESETS, NAME]


def test_caches_that_stay_in_use_are_an_error_and_the_weights_have_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_sync, "_DRAIN_SECONDS", 0.2)
    server = FakeVLLM()
    server.resets_refused = 1000
    refused("requests are still running", full(), server)
    assert server.version == "default"


@pytest.mark.parametrize("path", [RESETS[1], NAME])
def test_a_sync_that_broke_off_is_made_again(path: str) -> None:
    server = FakeVLLM()
    server.spoiled[path] = [(500, "broke off")]
    run(publishing(adapter()), server, patience_seconds=5)
    assert server.version == "adapter-1" and server.adapters == {"adapter-1": "/adapters/1"}


def test_nothing_goes_on_after_the_end() -> None:
    async def use(sync: ServerSync, servers: list[FakeVLLM]) -> None:
        before = asyncio.all_tasks()
        await sync.close()  # before the first sync there is nothing to end
        await sync.publish(full(1))
        await sync.publish(full(2))
        await until(lambda: servers[0].asked > 20)
        await sync.close()
        for client in sync._clients:
            await client.close()
        await until(lambda: asyncio.all_tasks() <= before)  # the server's side of connections ends, too
        asked = servers[0].asked
        await asyncio.sleep(0.1)
        assert servers[0].asked == asked

    run(use)
