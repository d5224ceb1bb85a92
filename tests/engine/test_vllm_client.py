"""Requests to one server, and what its refusals become."""

import asyncio
import base64
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fake_vllm import GENERATE, FakeVLLM, configuration

from mmsearch_trl.core.errors import ContextOverflow, EngineError
from mmsearch_trl.engine.vllm_client import (
    ServerInfo,
    ServerUnavailable,
    UnknownImage,
    UnknownModel,
    VLLMClient,
    wait_until_healthy,
)


BODY = {"token_ids": [1, 2, 3]}
TOO_LONG = "The decoder prompt (length 2000) is longer than the maximum model length of 1024."


def ask(server: FakeVLLM, use: Callable[[VLLMClient], Awaitable[Any]], *, seconds: float = 5.0) -> Any:
    async def inside() -> Any:
        async with server.serve() as url:
            client = VLLMClient(url, request_seconds=seconds)
            try:
                return await asyncio.wait_for(use(client), 10)
            finally:
                await client.close()

    return asyncio.run(inside())


def refusal(status: int, text: str, body: dict[str, Any] = BODY) -> EngineError:
    """The error of a turn that is answered so."""
    server = FakeVLLM()
    server.spoiled[GENERATE] = [(status, text)]
    with pytest.raises(EngineError) as caught:
        ask(server, lambda client: client.generate(body))
    return caught.value


@pytest.fixture
def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_a_turn_is_asked_for_and_answered() -> None:
    server = FakeVLLM()
    assert ask(server, lambda client: client.generate(BODY)) == {"prompt_token_ids": [1, 2, 3], "choices": []}
    assert server.calls == [(GENERATE, BODY)]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_worth_another_attempt(status: int) -> None:
    error = refusal(status, "out of order")
    assert type(error) is ServerUnavailable
    assert f"{GENERATE} answered HTTP {status}: out of order" in str(error)


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (400, "Cache miss for image at index 0 but data is not provided.", UnknownImage),
        (400, TOO_LONG, ContextOverflow),
        (404, "The model `full-1` does not exist.", UnknownModel),
        (400, "temperature must be non-negative", EngineError),
        (401, "Unauthorized", EngineError),
        (422, "Field required", EngineError),
    ],
)
def test_a_refusal_has_the_type_of_its_reason(status: int, text: str, kind: type[EngineError]) -> None:
    assert type(refusal(status, f'{{"error": {{"message": "{text}"}}}}')) is kind


def test_a_turn_that_takes_too_long_is_worth_another_attempt() -> None:
    server = FakeVLLM()
    server.hanging = True
    with pytest.raises(ServerUnavailable, match="did not answer within"):
        ask(server, lambda client: client.generate(BODY), seconds=0.1)


def test_a_broken_connection_is_worth_another_attempt() -> None:
    server = FakeVLLM()
    server.dropping = True
    with pytest.raises(ServerUnavailable, match="ServerDisconnectedError"):
        ask(server, lambda client: client.generate(BODY))


def test_a_server_that_is_not_there_is_worth_another_attempt(closed_port: str) -> None:
    async def use() -> None:
        client = VLLMClient(closed_port, request_seconds=5)
        assert not await client.healthy()
        try:
            await client.generate(BODY)
        finally:
            await client.close()

    with pytest.raises(ServerUnavailable, match="Cannot connect"):
        asyncio.run(use())


def test_no_turn_waits_for_the_connection_of_another() -> None:
    """aiohttp opens 100 connections by default, and a rollout has more turns at once."""
    server = FakeVLLM()

    async def use(client: VLLMClient) -> None:
        server.hanging = True
        turns = [asyncio.create_task(client.generate(BODY)) for _ in range(150)]
        deadline = asyncio.get_running_loop().time() + 10
        while len(server.calls) < 150 and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        for turn in turns:
            turn.cancel()
        await asyncio.wait(turns)
        assert len(server.calls) == 150

    ask(server, use)


def test_a_client_that_was_closed_connects_again() -> None:
    async def use(client: VLLMClient) -> None:
        for _ in range(2):
            assert await client.healthy()
            await client.close()

    ask(FakeVLLM(), use)


def test_a_message_repeats_no_image_and_is_short() -> None:
    data = base64.b64encode(bytes(range(256)) * 20).decode()
    url = f"data:image/png;base64,{data}"
    body = BODY | {"content_parts": [{"type": "image_url", "url": url, "uuid": "k"}]}
    message = str(refusal(422, f"cannot read {{'url': '{url}'}}\n of {body}", body))
    assert "data:" not in message and "<image>" in message and len(message) < 500
    assert not any(data[start : start + 12] in message for start in range(0, len(data), 12))


@pytest.mark.parametrize("status", [401, 404, 503])
def test_the_key_is_sent_and_never_told(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret-17")
    server = FakeVLLM()
    server.spoiled[GENERATE] = [(status, "no such user: Bearer secret-17")]
    with pytest.raises(EngineError) as caught:
        ask(server, lambda client: client.generate(BODY))
    assert server.keys == {"Bearer secret-17"}
    assert "no such user" in str(caught.value) and "secret" not in str(caught.value)


def test_no_header_is_sent_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    server = FakeVLLM()
    ask(server, lambda client: client.generate(BODY))
    assert server.keys == {None}


def test_the_configuration_is_read() -> None:
    plain = ServerInfo.parse(configuration())
    assert (plain.model, plain.max_model_len, plain.logprobs_mode) == ("some/model", 1024, "raw_logprobs")
    assert (plain.max_lora_rank, plain.weight_transfer, plain.chunked_prefill) == (None, None, True)
    assert (plain.worker_extension, plain.device) == ("", "cuda")
    changes = {"lora_config": {"max_lora_rank": 16}, "weight_transfer_config": {"backend": "nccl"}}
    changes |= {
        "parallel_config": {"worker_extension_cls": "a.B"},
        "scheduler_config": {"enable_chunked_prefill": False},
    }
    full = ask(FakeVLLM(**changes), lambda client: client.info())
    assert (full.max_lora_rank, full.weight_transfer, full.chunked_prefill) == (16, "nccl", False)
    assert full.worker_extension == "a.B"


def test_a_server_that_does_not_tell_its_configuration_is_told_how_to_start() -> None:
    server = FakeVLLM()
    server.takes_questions = False
    with pytest.raises(EngineError, match="start it with VLLM_SERVER_DEV_MODE=1") as caught:
        ask(server, lambda client: client.info())
    assert not isinstance(caught.value, UnknownModel)


def test_a_configuration_of_another_version_is_named() -> None:
    server = FakeVLLM()
    del server.config["weight_transfer_config"]
    with pytest.raises(EngineError, match=r"weight_transfer_config.*is it vLLM 0\.30"):
        ask(server, lambda client: client.info())


def test_weights_have_the_name_that_they_were_given() -> None:
    async def use(client: VLLMClient) -> tuple[str, str]:
        before = await client.weight_version()
        await client.name_weights("full-1")
        return before, await client.weight_version()

    assert ask(FakeVLLM(), use) == ("default", "full-1")


@pytest.mark.parametrize(
    ("device", "methods"), [("cuda", ["reload_weights"]), ("cpu", ["reload_weights", "repack_heads"])]
)
def test_heads_are_packed_anew_on_a_cpu_only(device: str, methods: list[str]) -> None:
    server = FakeVLLM(device_config={"device": device})
    ask(server, lambda client: client.load_weights("/weights/1"))
    assert [body["method"] for _, body in server.calls] == methods
    assert server.calls[0] == (
        "/collective_rpc",
        {"method": "reload_weights", "kwargs": {"weights_path": "/weights/1"}},
    )


def test_an_adapter_is_loaded_and_unloaded_by_name() -> None:
    server = FakeVLLM()

    async def use(client: VLLMClient) -> None:
        await client.load_adapter("a1", "/adapters/1")
        assert server.adapters == {"a1": "/adapters/1"}
        await client.unload_adapter("a1")
        with pytest.raises(UnknownModel, match="cannot be found"):
            await client.unload_adapter("a1")

    ask(server, use)
    assert server.adapters == {}


def test_an_adapter_that_the_server_holds_already_is_no_failure() -> None:
    server = FakeVLLM()

    async def use(client: VLLMClient) -> None:
        for _ in range(2):
            await client.load_adapter("a1", "/adapters/1")

    ask(server, use)
    assert server.adapters == {"a1": "/adapters/1"}


def test_all_three_caches_are_reset() -> None:
    server = FakeVLLM()
    ask(server, lambda client: client.reset_caches())
    assert server.paths == ["/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache"]


def test_a_prefix_cache_in_use_is_an_error() -> None:
    server = FakeVLLM()
    server.resets_refused = 1
    with pytest.raises(EngineError, match="requests are still running") as caught:
        ask(server, lambda client: client.reset_caches())
    assert not isinstance(caught.value, ServerUnavailable)
    assert server.paths == ["/reset_prefix_cache"]


def test_metrics_are_summed_over_engines() -> None:
    server = FakeVLLM()
    server.metrics = "\n".join(
        [
            "# HELP vllm:num_requests_running Number of {requests} running.",
            "# TYPE vllm:num_requests_running gauge",
            'vllm:num_requests_running{engine="0",model_name="some/model"} 3.0',
            'vllm:num_requests_running{engine="1",model_name="a {strange} name"} 4.0',
            'vllm:kv_cache_usage_perc{engine="0",model_name="some/model"} 2.5e-01',
            "process_open_fds 17.0",
            "",
        ]
    )
    assert ask(server, lambda client: client.metrics()) == {
        "vllm:num_requests_running": 7.0,
        "vllm:kv_cache_usage_perc": 0.25,
        "process_open_fds": 17.0,
    }


def test_a_server_that_starts_is_waited_for() -> None:
    server = FakeVLLM()
    server.away = True

    async def use(client: VLLMClient) -> None:
        waiting = asyncio.create_task(wait_until_healthy(client, 5))
        while not server.asked:
            await asyncio.sleep(0.01)
        assert not waiting.done()
        server.away = False
        await waiting

    ask(server, use)


def test_a_server_that_does_not_start_is_given_up(closed_port: str) -> None:
    async def use() -> None:
        client = VLLMClient(closed_port, request_seconds=5)
        try:
            await wait_until_healthy(client, 0.2)
        finally:
            await client.close()

    started = time.monotonic()
    with pytest.raises(ServerUnavailable, match=f"no vLLM server was healthy at {closed_port}"):
        asyncio.run(use())
    assert 0.2 <= time.monotonic() - started < 5
