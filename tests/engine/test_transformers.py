"""The transformers engine: batches, budgets, seeds, cancellation, failures, and what is drawn from."""

import asyncio
import random
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch

from mmsearch_trl.core.completion import Completion, FinishReason, SamplingParams
from mmsearch_trl.core.errors import EngineError
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.engine.transformers import TransformersEngine


FAMILY = tiny.qwen25()
CHAT = FAMILY.protocol().chat
STOP = CHAT.turn_end_id
Prompt = tuple[tuple[int, ...], list[ImageInput]]


@pytest.fixture(scope="module")
def model() -> Any:
    return FAMILY.model()


@pytest.fixture
def engine(model: Any) -> Any:
    engine = FAMILY.engine(model, CHAT)
    yield engine
    engine.close()


def prompts(count: int, images: Sequence[int] = (1, 0, 2)) -> list[Prompt]:
    protocol = FAMILY.protocol()
    encoded = [protocol.prompt(task) for task in tiny.tasks(count, images=images)]
    return [(e.token_ids, [part for part in e.parts if isinstance(part, ImageInput)]) for e in encoded]


def together(*calls: Coroutine[Any, Any, Completion]) -> list[Any]:
    async def gather() -> list[Any]:
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(gather())


def one(engine: TransformersEngine, prompt: Prompt, **sampling: Any) -> Completion:
    settings: dict[str, Any] = {"max_tokens": 6, "seed": 1} | sampling
    [completion] = together(engine.generate(*prompt, SamplingParams(**settings)))
    if isinstance(completion, BaseException):
        raise completion
    return completion


def test_requests_that_arrive_together_are_one_batch(engine: TransformersEngine) -> None:
    completions = together(
        *(engine.generate(*p, SamplingParams(max_tokens=3, seed=i)) for i, p in enumerate(prompts(6)))
    )
    assert engine.batches == [6]
    assert all(len(c.token_ids) == len(c.logprobs) <= 3 for c in completions)


def test_a_batch_is_never_larger_than_allowed(model: Any) -> None:
    engine = FAMILY.engine(model, CHAT, max_batch=4)
    together(*(engine.generate(*p, SamplingParams(max_tokens=2)) for p in prompts(10)))
    assert max(engine.batches) <= 4 and sum(engine.batches) == 10


def test_a_turn_does_not_depend_on_its_batch_mates(engine: TransformersEngine) -> None:
    given = prompts(6)
    alone = [one(engine, prompt, seed=i) for i, prompt in enumerate(given)]
    order = [4, 1, 5, 0, 3, 2]
    mixed = together(*(engine.generate(*given[i], SamplingParams(max_tokens=6, seed=i)) for i in order))
    for i, completion in zip(order, mixed, strict=True):
        assert completion.token_ids == alone[i].token_ids
        assert completion.logprobs == pytest.approx(alone[i].logprobs, abs=1e-5)


def test_each_request_has_its_own_seed_and_temperature(engine: TransformersEngine) -> None:
    [prompt] = prompts(1)
    seeds = [SamplingParams(max_tokens=6, seed=seed) for seed in (1, 1, 2)]
    same, again, other = together(*(engine.generate(*prompt, sampling) for sampling in seeds))
    assert same.token_ids == again.token_ids != other.token_ids
    warm = SamplingParams(max_tokens=6, seed=1, temperature=1e-4)
    cold, greedy = together(engine.generate(*prompt, warm), engine.generate(*prompt, replace(warm, temperature=0.0)))
    assert cold.token_ids == greedy.token_ids != same.token_ids


def test_each_request_has_its_own_budget(engine: TransformersEngine) -> None:
    given = prompts(5)
    completions = together(
        *(engine.generate(*prompt, SamplingParams(max_tokens=i + 1, seed=9)) for i, prompt in enumerate(given))
    )
    assert engine.batches == [5]
    for i, completion in enumerate(completions):
        stopped = completion.token_ids[-1] == STOP
        assert completion.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
        assert len(completion.token_ids) == i + 1 or stopped


def test_a_stop_id_ends_a_turn_and_belongs_to_it(model: Any) -> None:
    [prompt] = prompts(1)
    free = FAMILY.engine(model, CHAT)
    longest = one(free, prompt, max_tokens=8)
    stop = longest.token_ids[3]
    stopped = one(FAMILY.engine(model, CHAT, stop_ids=[stop]), prompt, max_tokens=8)
    assert stopped.token_ids == longest.token_ids[: longest.token_ids.index(stop) + 1]
    assert stopped.finish_reason is FinishReason.STOP


def test_a_stop_text_ends_its_own_turn_and_no_other(engine: TransformersEngine) -> None:
    given = prompts(3)
    free = [one(engine, prompt, max_tokens=10, seed=i) for i, prompt in enumerate(given)]
    stop, end = tiny.stop_in(free[0], CHAT)
    texts = [(stop, "never"), (), ("never",)]
    samplings = [SamplingParams(max_tokens=10, seed=i, stops=stops) for i, stops in enumerate(texts)]
    stopped = together(*(engine.generate(*prompt, how) for prompt, how in zip(given, samplings, strict=True)))
    assert stopped[0].token_ids == free[0].token_ids[:end] and end < len(free[0].token_ids)
    assert stopped[0].finish_reason is FinishReason.STOP and len(stopped[0].logprobs) == end
    assert [c.token_ids for c in stopped[1:]] == [c.token_ids for c in free[1:]]


def test_a_stop_text_without_a_way_to_decode_is_a_defect(model: Any) -> None:
    [prompt] = prompts(1)
    with pytest.raises(ValueError, match="need an engine that was given `decode`"):
        one(FAMILY.engine(model, CHAT, decode=None), prompt, stops=("x",))


def test_greedy_takes_the_likeliest_allowed_token(engine: TransformersEngine, model: Any) -> None:
    prompt = prompts(1)[0]
    first = one(engine, prompt, temperature=0.0, max_tokens=1)
    logits = _next_logits(model, prompt)
    logits[list(CHAT.vision_ids)] = -torch.inf
    assert first.token_ids[0] == int(logits.argmax())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_log_probs_are_those_of_the_full_softmax_at_the_temperature(
    engine: TransformersEngine, model: Any, temperature: float
) -> None:
    prompt = prompts(1)[0]
    completion = one(engine, prompt, temperature=temperature, max_tokens=1)
    expected = (_next_logits(model, prompt) / temperature).log_softmax(-1)[completion.token_ids[0]]
    assert completion.logprobs[0] == pytest.approx(float(expected), abs=1e-5)


def test_draws_follow_the_distribution(engine: TransformersEngine, model: Any) -> None:
    prompt = prompts(1)[0]
    count = 1500
    sampled = together(
        *(engine.generate(*prompt, SamplingParams(max_tokens=1, seed=s, temperature=0.3)) for s in range(count))
    )
    logits = _next_logits(model, prompt) / 0.3
    logits[list(CHAT.vision_ids)] = -torch.inf
    expected = logits.softmax(-1)
    found = torch.bincount(torch.tensor([c.token_ids[0] for c in sampled]), minlength=len(expected)) / count
    for token in expected.topk(4).indices.tolist():
        spread = float((expected[token] * (1 - expected[token]) / count).sqrt())
        assert abs(float(found[token] - expected[token])) < 5 * spread


@pytest.mark.parametrize("cut", [{"top_k": 2}, {"top_p": 0.3}], ids=str)
def test_top_k_and_top_p_cut_the_tail_only(engine: TransformersEngine, model: Any, cut: dict[str, Any]) -> None:
    prompt = prompts(1)[0]
    sampled = together(*(engine.generate(*prompt, SamplingParams(max_tokens=1, seed=s, **cut)) for s in range(64)))
    logits = _next_logits(model, prompt)
    log_probs = logits.log_softmax(-1)
    logits[list(CHAT.vision_ids)] = -torch.inf
    kept = logits.softmax(-1).sort(descending=True)
    size = cut.get("top_k") or int((kept.values.cumsum(0) < cut["top_p"]).sum()) + 1
    allowed = set(kept.indices[:size].tolist())
    seen = {completion.token_ids[0] for completion in sampled}
    assert seen <= allowed and len(seen) > 1
    assert all(c.logprobs[0] == pytest.approx(float(log_probs[c.token_ids[0]]), abs=1e-5) for c in sampled)


def test_requests_that_are_cut_differently_run_in_batches_of_their_own(engine: TransformersEngine) -> None:
    prompt = prompts(1)[0]
    cuts = [{"top_k": 1}, {}, {"top_k": 1}, {"top_p": 0.5}]
    together(*(engine.generate(*prompt, SamplingParams(max_tokens=2, **cut)) for cut in cuts))
    assert sorted(engine.batches) == [1, 1, 2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_vision_token_is_never_sampled_however_likely(temperature: float) -> None:
    model = FAMILY.model()
    head = torch.nn.Linear(128, model.lm_head.out_features)
    head.weight.data.zero_()
    head.bias.data.zero_()
    head.bias.data[CHAT.image_pad_id] = 1e4
    model.lm_head = head
    engine = FAMILY.engine(model, CHAT)
    sampled = together(
        *(
            engine.generate(*p, SamplingParams(max_tokens=8, seed=i, temperature=temperature))
            for i, p in enumerate(prompts(6))
        )
    )
    ids = {token for completion in sampled for token in completion.token_ids}
    assert ids.isdisjoint(CHAT.vision_ids)
    assert temperature == 0 or len(ids) > 10, "what is left of the distribution is drawn from, not its last id"


def test_an_id_without_a_token_is_never_sampled() -> None:
    model = FAMILY.model()
    model.resize_token_embeddings(CHAT.vocabulary_size + 30)
    model.lm_head.weight.data[CHAT.vocabulary_size :] *= 30
    engine = FAMILY.engine(model, CHAT)
    sampled = together(*(engine.generate(*p, SamplingParams(max_tokens=8, seed=i)) for i, p in enumerate(prompts(6))))
    assert max(token for completion in sampled for token in completion.token_ids) < CHAT.vocabulary_size


def test_cancelling_a_request_leaves_the_others_undisturbed(engine: TransformersEngine) -> None:
    given = prompts(4)
    expected = [one(engine, prompt, seed=i).token_ids for i, prompt in enumerate(given)]

    async def scenario(cancel_after: float) -> list[tuple[int, ...]]:
        calls = [
            asyncio.create_task(engine.generate(*prompt, SamplingParams(max_tokens=6, seed=i)))
            for i, prompt in enumerate(given)
        ]
        await asyncio.sleep(cancel_after)
        calls[1].cancel()
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(done[1], asyncio.CancelledError)
        return [c.token_ids for i, c in enumerate(done) if i != 1 and isinstance(c, Completion)]

    for cancel_after in (0.0, 0.008):
        assert asyncio.run(scenario(cancel_after)) == [expected[i] for i in (0, 2, 3)]


def test_closing_ends_a_batch_that_nobody_waits_for_with_its_next_token(model: Any) -> None:
    engine = FAMILY.engine(model, CHAT, stop_ids=[])

    async def scenario() -> None:
        call = asyncio.create_task(engine.generate(*prompts(1)[0], SamplingParams(max_tokens=100_000, seed=0)))
        await asyncio.sleep(0.3)
        call.cancel()

    asyncio.run(scenario())
    started = time.perf_counter()
    engine.close()
    assert time.perf_counter() - started < 2


def test_an_error_in_the_model_fails_its_batch_only(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = prompts(3)
    expected = one(engine, given[0]).token_ids
    with monkeypatch.context() as patch:
        patch.setattr(engine._model.model, "forward", _broken)
        failed = together(*(engine.generate(*prompt, SamplingParams(max_tokens=2)) for prompt in given))
    assert [type(outcome) for outcome in failed] == [EngineError] * 3
    assert "RuntimeError: out of memory" in str(failed[0])
    assert one(engine, given[0]).token_ids == expected


def test_a_defect_is_told_as_it_is_and_not_as_the_engines_failure(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_inputs", lambda batch: list(zip(batch, [], strict=True)))
    (outcome,) = together(engine.generate(*prompts(1)[0], SamplingParams(max_tokens=2)))
    assert type(outcome) is ValueError and "zip()" in str(outcome)


def test_a_model_that_computes_nan_is_an_engine_error() -> None:
    model = FAMILY.model()
    model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(EngineError, match="not finite"):
        one(FAMILY.engine(model, CHAT), prompts(1)[0])


def test_a_checkpoint_s_generation_defaults_change_nothing(engine: TransformersEngine, model: Any) -> None:
    given = prompts(3)
    before = [one(engine, prompt, seed=i) for i, prompt in enumerate(given)]
    other = FAMILY.model()
    settings = {"do_sample": True, "temperature": 1e-6, "top_k": 1, "top_p": 0.001, "repetition_penalty": 1.5}
    settings |= {"no_repeat_ngram_size": 1, "min_new_tokens": 6, "bad_words_ids": [[before[0].token_ids[0]]]}
    for name, value in settings.items():
        setattr(other.generation_config, name, value)
    after = [one(FAMILY.engine(other, CHAT), prompt, seed=i) for i, prompt in enumerate(given)]
    assert after == before


def test_the_model_s_training_mode_comes_back(engine: TransformersEngine, model: Any) -> None:
    model.train()
    one(engine, prompts(1)[0])
    assert model.training
    model.eval()


def test_arrival_in_any_order_and_at_any_time_gives_the_same_turns(engine: TransformersEngine) -> None:
    given = prompts(6)

    async def scattered(seed: int) -> list[Completion]:
        rng = random.Random(seed)

        async def call(i: int) -> Completion:
            await asyncio.sleep(rng.random() * 0.05)
            return await engine.generate(*given[i], SamplingParams(max_tokens=4, seed=i))

        return await asyncio.gather(*(call(i) for i in range(6)))

    first, second = asyncio.run(scattered(1)), asyncio.run(scattered(2))
    assert [c.token_ids for c in first] == [c.token_ids for c in second]


def _next_logits(model: Any, prompt: Prompt) -> torch.Tensor:
    ids, images = torch.tensor([prompt[0]]), [CHAT.images.features(image) for image in prompt[1]]
    vision: dict[str, Any] = {"mm_token_type_ids": (ids == CHAT.image_pad_id).long()}
    if images:
        vision["pixel_values"] = torch.cat([features.pixel_values for features in images])
        vision["image_grid_thw"] = torch.stack([features.grid_thw for features in images])
    with torch.no_grad():
        return model(input_ids=ids, **vision).logits[0, -1].float()


def _broken(*inputs: Any, **options: Any) -> Any:
    raise RuntimeError("out of memory")
