"""The server engine against real vLLM servers."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import tiny
from servers import Servers, post, vocabulary

from mmsearch_trl.core.completion import Completion, FinishReason, SamplingParams
from mmsearch_trl.core.errors import ContextOverflow, EngineError
from mmsearch_trl.core.trajectory import Trajectory, Turn
from mmsearch_trl.engine.vllm_client import UnknownImage
from mmsearch_trl.engine.vllm_server import ServerEngine
from mmsearch_trl.protocol.chat import Encoded


FAMILIES = {family.name: family for family in (tiny.qwen25(), tiny.qwen3())}


def run(
    servers: Servers,
    family: tiny.Family,
    use: Callable[[ServerEngine], Awaitable[Any]],
    *,
    urls: int = 1,
    **options: Any,
) -> Any:
    async def inside() -> Any:
        url = servers.url(family)
        engine = ServerEngine([url] * urls, vocabulary(family.protocol().chat), **options)
        try:
            return await asyncio.wait_for(use(engine), 120)
        finally:
            await engine.close()

    return asyncio.run(inside())


def prompts(family: tiny.Family, *images: int) -> list[Encoded]:
    protocol = family.protocol()
    return [protocol.prompt(task) for task in tiny.tasks(len(images), images=images)]


def pictures(prompt: Encoded) -> list[Any]:
    return [part for part in prompt.parts if not isinstance(part, str)]


def sampling(seed: int = 0, **options: Any) -> SamplingParams:
    settings: dict[str, Any] = {"max_tokens": 12, "seed": seed} | options
    return SamplingParams(**settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_log_probs_are_those_of_the_model(servers: Servers, name: str) -> None:
    family = FAMILIES[name]
    model, protocol = family.model(), family.protocol()
    given = tiny.tasks(4, images=(0, 1, 2, 3))

    async def use(engine: ServerEngine) -> list[Completion]:
        made = [protocol.prompt(task) for task in given]
        return await asyncio.gather(*(engine.generate(p.token_ids, pictures(p), sampling(3)) for p in made))

    for task, completion in zip(given, run(servers, family, use), strict=True):
        prompt = protocol.prompt(task)
        turn = Turn(
            token_ids=completion.token_ids,
            logprobs=completion.logprobs,
            finish_reason=completion.finish_reason,
            text="",
            action=protocol.read(""),
        )
        trajectory = Trajectory(task=task, prompt=prompt.parts, prompt_ids=prompt.token_ids, turns=[turn])
        expected = tiny.alone(model, protocol.chat, trajectory)
        assert len(completion.token_ids) > 1 and completion.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
        assert protocol.chat.vision_ids.isdisjoint(completion.token_ids)


@pytest.mark.slow
def test_a_stop_text_ends_a_turn_with_the_token_that_completes_it(servers: Servers) -> None:
    family = tiny.qwen25()
    [prompt] = prompts(family, 1)

    async def use(engine: ServerEngine) -> tuple[Completion, Completion, int]:
        free = await engine.generate(prompt.token_ids, pictures(prompt), sampling())
        stop, end = tiny.stop_in(free, family.protocol().chat)
        stopped = await engine.generate(prompt.token_ids, pictures(prompt), sampling(stops=(stop, "never")))
        return free, stopped, end

    free, stopped, end = run(servers, family, use)
    assert stopped.token_ids == free.token_ids[:end] and len(stopped.logprobs) == end < len(free.token_ids)
    assert stopped.finish_reason is FinishReason.STOP


@pytest.mark.slow
def test_an_image_travels_once_however_many_want_it_at_once(servers: Servers) -> None:
    family = tiny.qwen25()
    first, second = prompts(family, 1, 2)

    async def use(engine: ServerEngine) -> tuple[int, dict[str, float], dict[str, float]]:
        client = engine.servers[0].client
        before = await client.metrics()
        for wave in range(2):
            await asyncio.gather(
                *(
                    engine.generate(p.token_ids, pictures(p), sampling(8 * wave + i))
                    for i in range(8)
                    for p in (first, second)
                )
            )
        return engine.images_sent, before, await client.metrics()

    sent, before, after = run(servers, family, use)
    assert sent == 3
    asked, found = (
        after[f"vllm:mm_cache_{n}_total"] - before[f"vllm:mm_cache_{n}_total"] for n in ("queries", "hits")
    )
    assert asked - found == 3  # processed once each
    assert asked == 2 * 8 * 3 + 3


@pytest.mark.slow
def test_an_image_that_the_server_dropped_is_sent_again(servers: Servers) -> None:
    family = tiny.qwen25()
    [prompt] = prompts(family, 1)

    async def use(engine: ServerEngine) -> list[Completion]:
        first = await engine.generate(prompt.token_ids, pictures(prompt), sampling(1))
        await asyncio.to_thread(post, engine.servers[0].client.url, "/reset_mm_cache")
        second = await engine.generate(prompt.token_ids, pictures(prompt), sampling(1))
        assert engine.images_sent == 2
        return [first, second]

    first, second = run(servers, family, use)
    assert first.token_ids == second.token_ids


@pytest.mark.slow
def test_a_seed_decides_a_turn_whatever_else_is_sampled(servers: Servers) -> None:
    family = tiny.qwen25()
    made = prompts(family, 0, 1, 2, 3, 0, 1)

    async def use(engine: ServerEngine) -> list[list[Completion]]:
        waves = []
        for order in range(3):
            indices = random.Random(order).sample(range(len(made)), len(made))
            answers = await asyncio.gather(
                *(engine.generate(made[i].token_ids, pictures(made[i]), sampling(i, max_tokens=20)) for i in indices)
            )
            waves.append([answer for _, answer in sorted(zip(indices, answers, strict=True))])
        alone = [
            await engine.generate(p.token_ids, pictures(p), sampling(i, max_tokens=20)) for i, p in enumerate(made)
        ]
        return [*waves, alone]

    first, *others = ([c.token_ids for c in wave] for wave in run(servers, family, use))
    assert all(other == first for other in others) and len(set(first)) == len(first)


@pytest.mark.slow
def test_turns_end_at_their_budget_or_at_the_turn_end(servers: Servers) -> None:
    family = tiny.qwen25()
    chat = family.protocol().chat
    [prompt] = prompts(family, 1)

    async def use(engine: ServerEngine) -> list[Completion]:
        return await asyncio.gather(
            *(engine.generate(prompt.token_ids, pictures(prompt), sampling(i, max_tokens=60)) for i in range(60))
        )

    reasons = set()
    for completion in run(servers, family, use):
        ended = completion.token_ids[-1] == chat.turn_end_id
        assert chat.turn_end_id not in completion.token_ids[:-1]
        assert completion.finish_reason is (FinishReason.STOP if ended else FinishReason.LENGTH)
        assert ended or len(completion.token_ids) == 60
        reasons.add(completion.finish_reason)
    assert reasons == set(FinishReason)


@pytest.mark.slow
def test_a_prompt_over_the_window_is_told_from_a_failure(servers: Servers) -> None:
    async def use(engine: ServerEngine) -> None:
        await engine.generate([5] * 2000, [], sampling())

    with pytest.raises(ContextOverflow, match="window"):
        run(servers, tiny.qwen25(), use)


@pytest.mark.slow
def test_a_prompt_that_vllm_sees_differently_is_refused(servers: Servers) -> None:
    family = tiny.qwen25()
    [prompt] = prompts(family, 1)
    pad = family.protocol().chat.image_pad_id
    one_too_many = list(prompt.token_ids)
    one_too_many.insert(one_too_many.index(pad), pad)

    async def use(engine: ServerEngine) -> None:
        await engine.generate(one_too_many, pictures(prompt), sampling())

    with pytest.raises(EngineError, match="another prompt than ours"):
        run(servers, family, use)


@pytest.mark.slow
def test_no_message_repeats_an_image_or_a_key(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret-key-of-the-server")
    family = tiny.qwen25()
    [prompt] = prompts(family, 1)

    async def use(engine: ServerEngine) -> list[str]:
        client, messages = engine.servers[0].client, []
        picture = "data:image/png;base64," + "A" * 4000
        part = {"type": "image_url", "url": picture, "uuid": "broken"}
        bodies: list[dict[str, Any]] = [
            {"token_ids": [1, 2], "content_parts": [part], "sampling_params": {"max_tokens": 1}},
            {"token_ids": picture, "content_parts": [part], "sampling_params": {"max_tokens": "x"}},
            {"token_ids": [1], "content_parts": picture, "sampling_params": {}},
        ]
        for body in bodies:
            with pytest.raises(EngineError) as caught:
                await client.generate(body)
            messages.append(str(caught.value))
        with pytest.raises(UnknownImage):
            await client.generate(engine._body(list(prompt.token_ids), pictures(prompt), {"max_tokens": 1}))
        return messages

    for message in run(servers, family, use):
        assert "AAAA" not in message and "secret-key" not in message and "HTTP 4" in message
