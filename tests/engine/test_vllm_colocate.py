"""The colocated engine, with a real vLLM in this process: tokens, log-probs, weights, adapters, failures, ranks."""

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from engine import colocate_worker as worker
from forks import TWO, Forks
from peft import LoraConfig, get_peft_model
from servers import QUIET, environment

from mmsearch_trl.core.completion import Completion, FinishReason, SamplingParams
from mmsearch_trl.core.errors import ContextOverflow, EngineError
from mmsearch_trl.engine.vllm_colocate import ColocatedEngine
from mmsearch_trl.engine.weight_sync import sampler_weights


pytestmark = pytest.mark.slow

FAMILIES = [tiny.qwen25(), tiny.qwen3()]
ARGS = worker.ARGS | {"enable_lora": True, "max_lora_rank": 8}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family.name: worker.save(family, tmp_path_factory.mktemp(family.name)) for family in FAMILIES}


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> tiny.Family:
    return request.param


@pytest.fixture(scope="module")
def started(family: tiny.Family, checkpoints: dict[str, Path]) -> Iterator[ColocatedEngine]:
    """An engine for all tests of a family; what vLLM changes in this process is put back."""
    with environment():
        engine = ColocatedEngine(str(checkpoints[family.name]), worker.vocabulary(family), engine_args=ARGS)
        yield engine
        engine.close()


@pytest.fixture
def engine(started: ColocatedEngine, family: tiny.Family) -> ColocatedEngine:
    """The engine with the weights that it started with."""
    started.load_weights(family.model().named_parameters())
    return started


def test_log_probs_are_the_transformers_model_s(engine: ColocatedEngine, family: tiny.Family) -> None:
    given = worker.prompts(family, 8)
    completions = worker.rollout(engine, given)
    assert [len(images) for _, images in given] == [1, 0, 2, 3] * 2
    assert worker.difference(family, family.model(), given, completions) < 1e-4
    assert all(len(c.token_ids) == len(c.logprobs) > 0 for c in completions)


def test_a_turn_ends_at_a_stop_id_or_its_budget(engine: ColocatedEngine, family: tiny.Family) -> None:
    [prompt] = worker.prompts(family, 1)
    [free] = worker.rollout(engine, [prompt])
    assert (len(free.token_ids), free.finish_reason) == (10, FinishReason.LENGTH)
    stop = free.token_ids[4]
    with _vocabulary(engine, stop_ids=frozenset([stop])):
        [stopped] = worker.rollout(engine, [prompt])
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]
    assert stopped.finish_reason is FinishReason.STOP


def test_a_stop_text_ends_a_turn_with_the_token_that_completes_it(
    engine: ColocatedEngine, family: tiny.Family
) -> None:
    [prompt] = worker.prompts(family, 1)
    [free] = worker.rollout(engine, [prompt])
    stop, end = tiny.stop_in(free, family.protocol().chat)
    with engine.rollout():
        sampling = SamplingParams(max_tokens=10, stops=(stop, "never"))
        stopped = asyncio.run(engine.generate(*prompt, sampling))
    assert stopped.token_ids == free.token_ids[:end] and len(stopped.logprobs) == end < len(free.token_ids)
    assert stopped.finish_reason is FinishReason.STOP


def test_a_forbidden_id_is_never_sampled(engine: ColocatedEngine, family: tiny.Family) -> None:
    given = worker.prompts(family, 8)
    free = worker.rollout(engine, given)
    assert any(token % 8 for completion in free for token in completion.token_ids)
    head = family.model().get_output_embeddings()
    assert head is not None
    forbidden = frozenset(token for token in range(head.weight.shape[0]) if token % 8)
    with _vocabulary(engine, forbidden_ids=forbidden):
        completions = worker.rollout(engine, given)
    assert not any(token % 8 for completion in completions for token in completion.token_ids)
    assert worker.difference(family, family.model(), given, completions) < 1e-4, "still of the full softmax"


def test_a_turn_depends_on_its_seed_and_not_on_its_company(engine: ColocatedEngine, family: tiny.Family) -> None:
    given = worker.prompts(family, 6)
    expected = worker.rollout(engine, given)

    async def scattered(seed: int) -> list[Completion]:
        rng = random.Random(seed)

        async def call(i: int) -> Completion:
            await asyncio.sleep(rng.random() * 0.05)
            return await engine.generate(*given[i], SamplingParams(max_tokens=10, seed=i))

        return await asyncio.gather(*(call(i) for i in range(6)))

    with engine.rollout():
        for seed in (1, 2):
            completions = asyncio.run(scattered(seed))
            assert [c.token_ids for c in completions] == [c.token_ids for c in expected]
    [other] = worker.rollout(engine, given[1:2])  # seed 0 instead of 1
    assert other.token_ids != expected[1].token_ids


def test_cancelling_a_turn_frees_what_it_held_and_disturbs_no_other(
    engine: ColocatedEngine, family: tiny.Family
) -> None:
    given = worker.prompts(family, 4)
    expected = worker.rollout(engine, given)

    async def scenario(wait: float) -> list[Completion]:
        endless = asyncio.create_task(engine.generate(*given[0], SamplingParams(max_tokens=400, temperature=0.7)))
        await asyncio.sleep(wait)
        others = asyncio.create_task(worker.write(engine, given))
        await asyncio.sleep(0)
        scheduler = engine._stepper.core.scheduler
        held = scheduler.kv_cache_manager.usage > 0 and bool(scheduler.running)
        endless.cancel()
        with pytest.raises(asyncio.CancelledError):
            await endless
        assert wait == 0 or held
        return await others

    with engine.rollout():
        for wait in (0.0, 0.1):
            assert [c.token_ids for c in asyncio.run(scenario(wait))] == [c.token_ids for c in expected]
    assert engine._stepper.core.scheduler.kv_cache_manager.usage == 0
    assert engine._stepper.core.scheduler.get_num_unfinished_requests() == 0


def test_a_prompt_that_leaves_no_room_is_an_overflow(engine: ColocatedEngine, family: tiny.Family) -> None:
    [prompt] = worker.prompts(family, 1)
    assert engine.max_model_len == 512
    with engine.rollout():
        with pytest.raises(ContextOverflow, match="512 tokens, max_model_len is 512"):
            asyncio.run(engine.generate([5] * 512, [], SamplingParams(max_tokens=4)))
        fits = asyncio.run(engine.generate([5] * 511, [], SamplingParams(max_tokens=4)))
        [after] = asyncio.run(worker.write(engine, [prompt]))
    assert (len(fits.token_ids), fits.finish_reason) == (1, FinishReason.LENGTH)
    assert len(after.token_ids) == 10


def test_turns_are_written_within_a_rollout_only(engine: ColocatedEngine, family: tiny.Family) -> None:
    with pytest.raises(RuntimeError, match="within its rollout"):
        asyncio.run(engine.generate([5, 6], [], SamplingParams(max_tokens=2)))
    with engine.rollout(), pytest.raises(RuntimeError, match="a rollout is open"):
        engine.load_weights([])


def test_a_rollout_that_is_left_abandons_its_turns(engine: ColocatedEngine, family: tiny.Family) -> None:
    [prompt] = worker.prompts(family, 1)

    async def leave_early() -> BaseException:
        with engine.rollout():
            endless = asyncio.create_task(engine.generate(*prompt, SamplingParams(max_tokens=400)))
            await asyncio.sleep(0.05)
        [outcome] = await asyncio.gather(endless, return_exceptions=True)
        assert isinstance(outcome, BaseException)
        return outcome

    outcome = asyncio.run(leave_early())
    assert isinstance(outcome, EngineError) and "the rollout ended" in str(outcome)
    assert engine._stepper.core.scheduler.get_num_unfinished_requests() == 0


def test_one_picture_in_many_turns_is_processed_and_encoded_once(
    engine: ColocatedEngine, family: tiny.Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    [(token_ids, images)] = worker.prompts(family, 1, seed=77)
    given = [(token_ids, images), (token_ids + token_ids[-1:], images)]
    processed: Any = engine._llm.renderer._mm_processor_only_cache
    before = processed.make_stats()
    runner = engine._stepper.core.model_executor.driver_worker.worker.model_runner
    encoded, original = [], runner.model.embed_multimodal
    monkeypatch.setattr(runner.model, "embed_multimodal", lambda **inputs: encoded.append(1) or original(**inputs))
    assert len(worker.rollout(engine, given * 4)) == 8
    after = processed.make_stats()
    assert (after.total - before.total, after.hits - before.hits) == (8, 7)
    assert len(encoded) == 1


def test_a_group_s_prompt_is_prepared_once_and_its_turns_are_those_of_prompts_apart(
    engine: ColocatedEngine, family: tiny.Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = worker.prompts(family, 2, images=(2, 0), seed=80)
    renderer: Any = engine._llm.renderer
    prepared, render = [], renderer.render_cmpl
    monkeypatch.setattr(renderer, "render_cmpl", lambda prompts, **o: prepared.append(1) or render(prompts, **o))
    together = worker.rollout(engine, [first] * 4 + [second] * 4)
    assert len(prepared) == 2
    engine._stepper.reset_caches()
    apart = worker.rollout(engine, [first, second, first, second, first, second, first, second])
    assert len(prepared) == 2 + 8
    assert [apart[i].token_ids for i in (0, 2)] == [together[i].token_ids for i in (0, 2)]
    assert [apart[i].token_ids for i in (5, 7)] == [together[i].token_ids for i in (5, 7)]


def test_ids_that_vllm_would_not_sample_from_are_refused_before_it_does(
    engine: ColocatedEngine, family: tiny.Family
) -> None:
    [(token_ids, [image])] = worker.prompts(family, 1, seed=78)
    pad = token_ids.index(family.protocol().chat.image_pad_id)
    with engine.rollout():
        with pytest.raises(EngineError, match="another prompt than ours"):
            asyncio.run(engine.generate(token_ids[:pad] + token_ids[pad + 1 :], [image], SamplingParams(max_tokens=2)))
        with pytest.raises(EngineError):
            asyncio.run(engine.generate(token_ids, [image, image], SamplingParams(max_tokens=2)))
        [after] = asyncio.run(worker.write(engine, [(token_ids, [image])]))
    assert worker.difference(family, family.model(), [(token_ids, [image])], [after]) < 1e-4


def test_a_step_that_fails_costs_the_turns_under_way_and_no_other(
    engine: ColocatedEngine, family: tiny.Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = worker.prompts(family, 4, seed=79)
    expected = worker.rollout(engine, given)
    runner = engine._stepper.core.model_executor.driver_worker.worker.model_runner
    with engine.rollout():
        with monkeypatch.context() as patch:
            patch.setattr(runner.model, "forward", _broken)
            failed = asyncio.run(_gather(engine, given))
        again = asyncio.run(worker.write(engine, given))
    assert [str(outcome) for outcome in failed] == ["RuntimeError: out of memory"] * 4
    assert all(isinstance(outcome, EngineError) for outcome in failed)
    assert [c.token_ids for c in again] == [c.token_ids for c in expected]


def test_weights_that_diverged_are_an_engine_error(engine: ColocatedEngine, family: tiny.Family) -> None:
    model = family.model()
    model.model.language_model.norm.weight.data.fill_(torch.nan)
    engine.load_weights(model.named_parameters())
    with pytest.raises(EngineError, match="not finite"):
        worker.rollout(engine, worker.prompts(family, 1))


def test_new_weights_are_sampled_from_with_pictures_seen_before(engine: ColocatedEngine, family: tiny.Family) -> None:
    given = worker.prompts(family, 4)
    new = family.model(seed=1)
    assert all(not torch.equal(a, b) for a, b in zip(_matrices(family.model()), _matrices(new), strict=True))
    stale = worker.rollout(engine, given)
    assert worker.difference(family, new, given, stale) > 0.5
    engine.load_weights(sampler_weights(new))
    assert worker.difference(family, new, given, worker.rollout(engine, given)) < 1e-4
    engine.load_weights(family.model().named_parameters())
    assert worker.difference(family, family.model(), given, worker.rollout(engine, given)) < 1e-4


def test_without_emptied_caches_new_weights_would_see_old_pictures(
    engine: ColocatedEngine, family: tiny.Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the test before: keys and values are forgotten, encoded images are not."""
    given = worker.prompts(family, 4)
    new = family.model(seed=1)
    runner = engine._stepper.core.model_executor.driver_worker.worker.model_runner
    worker.rollout(engine, given)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "reset_encoder_cache", lambda: None)
        patch.setattr(engine._llm, "reset_encoder_cache", lambda: None)
        engine.load_weights(new.named_parameters())
    completions = worker.rollout(engine, given)
    assert worker.difference(family, new, given[1:2], completions[1:2]) < 1e-4, "the one without an image"
    for i in (0, 2, 3):
        assert worker.difference(family, new, given[i : i + 1], completions[i : i + 1]) > 0.01


def test_a_scheduler_that_remembers_pictures_of_old_weights_fails_loudly_and_recovers(
    engine: ColocatedEngine, family: tiny.Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = worker.prompts(family, 1)
    worker.rollout(engine, given)
    with monkeypatch.context() as patch:
        patch.setattr(engine._llm, "reset_encoder_cache", lambda: None)  # the runner resets its own when it reloads
        engine.load_weights(family.model().named_parameters())
    with engine.rollout():
        with pytest.raises(EngineError, match="Encoder cache miss"):
            asyncio.run(worker.write(engine, given))
        completions = asyncio.run(worker.write(engine, given))
    assert worker.difference(family, family.model(), given, completions) < 1e-4


def test_an_adapter_is_sampled_from_until_the_next_takes_its_place(
    engine: ColocatedEngine, family: tiny.Family, tmp_path: Path
) -> None:
    given = worker.prompts(family, 4)
    worker.rollout(engine, given)
    for seed in (1, 2):
        adapted = _adapted(family, seed)
        adapted.save_pretrained(tmp_path / str(seed))
        engine.load_adapter(tmp_path / str(seed), "policy")
        completions = worker.rollout(engine, given)
        assert worker.difference(family, adapted, given, completions) < 1e-4
        assert worker.difference(family, family.model(), given, completions) > 0.05
        assert len(engine._llm.list_loras()) == 1
    _adapted(family, 3, rank=16).save_pretrained(tmp_path / "large")
    with pytest.raises(ValueError, match="rank 16"):
        engine.load_adapter(tmp_path / "large", "policy")
    assert worker.difference(family, adapted, given, worker.rollout(engine, given)) < 1e-4, "the last one stays"
    new = family.model(seed=1)
    engine.load_weights(new.named_parameters())
    assert worker.difference(family, new, given, worker.rollout(engine, given)) < 1e-4, "whole weights drop it"


@pytest.mark.parametrize("level", [1, 2])
def test_the_engine_sleeps_between_rollouts_and_wakes_once(
    engine: ColocatedEngine, family: tiny.Family, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's own state machine of sleep; only its workers ignore it, on a CPU."""
    calls: list[Any] = []
    executor = engine._stepper.core.model_executor
    original = executor.collective_rpc

    def spy(method: str, *args: Any, **options: Any) -> Any:
        if method in ("sleep", "wake_up"):
            calls.append((method, *options["kwargs"].values()))
        return original(method, *args, **options)

    monkeypatch.setattr(executor, "collective_rpc", spy)
    monkeypatch.setattr(engine, "_sleeps", True)
    monkeypatch.setattr(engine, "_sleep_level", level)
    given = worker.prompts(family, 4)
    worker.rollout(engine, given)
    assert calls == [("sleep", level)]
    if level == 2:
        with pytest.raises(RuntimeError, match="load_weights"):
            worker.rollout(engine, given)
    new = family.model(seed=1)
    engine.load_weights(new.named_parameters())
    assert calls[1:] == [("wake_up", ["weights"])] and not engine.needs_weights
    assert worker.difference(family, new, given, worker.rollout(engine, given)) < 1e-4
    assert calls[2:] == [("wake_up", ["kv_cache"]), ("sleep", level)]
    monkeypatch.setattr(engine, "_sleeps", False)
    engine.load_weights(new.named_parameters())
    worker.rollout(engine, given)
    assert engine._llm.is_sleeping() is False


def test_two_ranks_have_an_engine_each_or_share_one(
    forks: Forks, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    forks.launch(TWO, str(worker.__file__), str(checkpoints["qwen2.5-vl"]), str(tmp_path), folder=tmp_path)
    reports = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    for report in reports:
        assert max(report["own"], report["before"], report["after"]) < 1e-4
        assert report["ranks"] == [0, 1] and report["requests"] == 0
        assert report["left"] == [], "names of shared memory that would stop a later run if this one were killed"
        assert report["idle"] < 0.5, "seconds of computing in one of waiting"
    assert [report["alone"] for report in reports] == [3, 0]


FEWER_THREADS = """
import gc
gc.disable()
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
import tiny
from engine import colocate_worker as worker
from forks import TWO, Forks
from mmsearch_trl.engine.vllm_colocate import ColocatedEngine
family = tiny.qwen25()
engine = ColocatedEngine(sys.argv[1], worker.vocabulary(family), engine_args=worker.ARGS)
given = worker.prompts(family, 2)
assert worker.difference(family, family.model(), given, worker.rollout(engine, given)) < 1e-4
"""


def test_threads_that_the_process_set_hold_for_the_step_loop_too(checkpoints: dict[str, Path]) -> None:
    """vLLM's CPU kernels count threads when they plan and when they run, and stop where the two differ."""
    command = [sys.executable, "-c", FEWER_THREADS, str(checkpoints["qwen2.5-vl"]), str(Path(__file__).parents[1])]
    environment = os.environ | QUIET | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@contextmanager
def _vocabulary(engine: ColocatedEngine, **changes: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._stepper, "_vocabulary", replace(engine._stepper._vocabulary, **changes))
        yield


def _matrices(model: Any) -> list[torch.Tensor]:
    return [parameter for parameter in model.parameters() if parameter.dim() >= 2]


def _adapted(family: tiny.Family, seed: int, rank: int = 4) -> Any:
    config = LoraConfig(r=rank, lora_alpha=8, target_modules=r".*language_model.*_proj")
    adapted = get_peft_model(family.model(), config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.1, generator=generator)
    return adapted.eval()


async def _gather(engine: ColocatedEngine, given: Sequence[worker.Prompt]) -> list[Any]:
    calls = [engine.generate(*prompt, SamplingParams(max_tokens=10, seed=i)) for i, prompt in enumerate(given)]
    return await asyncio.gather(*calls, return_exceptions=True)


def _broken(*inputs: Any, **options: Any) -> Any:
    raise RuntimeError("out of memory")
