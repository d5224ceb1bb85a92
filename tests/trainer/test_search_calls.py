"""What the searches of a batch came to, over all ranks, and a run that ends since its searches are not answered."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from transformers import IntervalStrategy, TrainerCallback

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.errors import EngineError, EngineLost, SearchError, SearchLost
from mmsearch_trl.core.observation import FailureKind, ImageHit, ImageQuery, TextHit
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.search.calls.backend_client import CallPolicy
from mmsearch_trl.search.calls.budget import Budget
from mmsearch_trl.search.calls.record import CallRecord
from mmsearch_trl.search.runtime import SearchRuntime
from mmsearch_trl.train import print_searches
from mmsearch_trl.trainer.search_calls import SearchCalls


pytestmark = pytest.mark.slow


def record(**values: Any) -> CallRecord:
    return CallRecord(**{"tool": ActionKind.TEXT_SEARCH, "seconds": 0.1, "cached": False, "coalesced": False} | values)


class Summing(Ranks):
    """Ranks that each have one of the given lists of numbers; the last asked is this one."""

    def __init__(self, *others: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.asked: list[list[float]] = []
        self._others = [iter(other) for other in others]

    def rows(self, numbers: Sequence[float]) -> list[list[float]]:
        self.asked.append(list(numbers))
        return [*(list(next(other)) for other in self._others), list(numbers)]


def test_the_calls_of_all_ranks_are_summed() -> None:
    mine = [record(tries=2, paid=True), record(cached=True, seconds=3.0), record(failure=FailureKind.TIMEOUT, tries=3)]
    other = Summing()
    SearchCalls.gather([record(failure=FailureKind.INVALID_QUERY), record(coalesced=True)], other)
    calls = SearchCalls.gather(mine, Summing(other.asked))
    total = calls.total
    assert (total.calls, total.cached, total.coalesced, total.failed, total.tries, total.paid) == (5, 1, 1, 2, 5, 2)
    assert calls.failures == {FailureKind.TIMEOUT: 1, FailureKind.INVALID_QUERY: 1}
    assert calls.infrastructure_failures == {FailureKind.TIMEOUT: 1}
    metrics = calls.metrics()
    assert metrics["search/failure_rate"] == pytest.approx(0.4)
    assert metrics["search/failure_rate/timeout"] == pytest.approx(0.2)
    assert metrics["search/calls"] == 5 and metrics["search/paid_calls"] == 2
    assert metrics["search/latency_p95"] > 2.0


def test_bytes_and_dollars_of_all_ranks_are_told_by_tool_and_exact() -> None:
    large = 2**40 + 1
    """More than a float32 tells from its neighbours."""
    image = record(tool=ActionKind.IMAGE_SEARCH, tries=3, paid=True, bytes=large, price=0.045)
    records, other = [image, record(bytes=7), record(cached=True)], Summing()
    SearchCalls.gather(records, other)
    both = SearchCalls.gather(records, Summing(other.asked))
    metrics = both.metrics()
    assert metrics["search/image/bytes"] == 2 * large and metrics["search/image/price"] == pytest.approx(0.09)
    assert metrics["search/text/bytes"] == 14 and metrics["search/text/price"] == 0
    assert metrics["search/bytes"] == 2 * large + 14 and metrics["search/price"] == pytest.approx(0.09)
    assert metrics["search/image/calls"] == 2 and metrics["search/text/calls"] == 4
    assert metrics["search/text/cache_hit"] == 0.5 and metrics["search/image/cache_hit"] == 0
    assert both.total.bytes == 2 * large + 14


def test_a_batch_without_searches_has_rates_of_nought() -> None:
    calls = SearchCalls.gather([], Ranks())
    assert set(calls.metrics().values()) == {0.0}


class Backend:
    """Answers so many calls, then fails in the given way."""

    name, fingerprint, paid = "test", "1", True

    def __init__(self, good: int, kind: FailureKind) -> None:
        self.good, self.kind, self.calls = good, kind, 0

    async def search(self, query: ImageQuery | str, k: int) -> Any:
        self.calls += 1
        if self.calls > self.good:
            raise SearchError(self.kind, "no more")
        return [TextHit("title", "text")] if isinstance(query, str) else [ImageHit("title")]


def trained(tmp_path: Path, backend: Backend, budget: Budget | None = None, **options: Any) -> Any:
    policy = CallPolicy(retries=0)
    search = SearchRuntime(backend, backend, image_policy=policy, text_policy=policy, budget=budget)
    return tiny.trainer(tiny.qwen25(), tmp_path, tiny.tasks(6), tools=search, max_steps=4, **options)


@pytest.mark.parametrize("kind", [FailureKind.QUOTA_SPENT, FailureKind.KEY_REFUSED])
def test_a_spent_quota_ends_the_run_and_the_last_whole_step_is_saved(tmp_path: Path, kind: FailureKind) -> None:
    trainer = trained(tmp_path, Backend(4 * 2, kind))  # the first batch has no more
    with pytest.raises(SearchLost, match=f"none will be.*the first: {kind.value}: no more"):
        trainer.train()
    step = trainer.state.global_step
    assert 1 <= step < 4 and (tmp_path / f"checkpoint-{step}" / "trainer_state.json").is_file()


def test_nothing_is_saved_where_nothing_was_learned(tmp_path: Path) -> None:
    trainer = trained(tmp_path, Backend(0, FailureKind.KEY_REFUSED))
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    with pytest.raises(SearchLost, match="it refuses the key"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))
    assert all(one.equal(other) for one, other in zip(before, trainer.model.parameters(), strict=True))


def test_the_last_paid_call_that_is_allowed_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backend = Backend(10_000, FailureKind.UNAVAILABLE)
    trainer = trained(tmp_path, backend, budget=Budget(3))
    with pytest.raises(SearchLost, match="max_paid_calls"):
        trainer.train()
    assert backend.calls == 3
    print_searches(trainer.rollouter.tools, trainer.ranks)
    paid = [int(line.split(" tries paid")[0].split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert sum(paid) == 3 == sum(total.paid for total in trainer.rollouter.tools.totals.values())


def test_too_many_failures_end_the_run(tmp_path: Path) -> None:
    options = {"max_search_failure_share": 0.5, "search_failure_window": 4}
    trainer = trained(tmp_path, Backend(2, FailureKind.UNAVAILABLE), **options)
    with pytest.raises(SearchLost, match=r"'unavailable'.*the first: unavailable: no more"):
        trainer.train()
    assert trainer.state.global_step < 4


def test_a_retriever_that_never_answers_ends_a_run_that_makes_few_searches(tmp_path: Path) -> None:
    trainer = trained(tmp_path, Backend(0, FailureKind.TIMEOUT))
    with pytest.raises(SearchLost, match=r"none of the last .* searches worked; the first: timeout: no more"):
        trainer.train()


def test_a_run_whose_searches_are_answered_goes_on(tmp_path: Path) -> None:
    trainer = trained(tmp_path, Backend(10_000, FailureKind.UNAVAILABLE), search_failure_window=1)
    trainer.train()
    assert trainer.collector.outage.lost_at_end() is None and trainer.state.global_step == 4
    assert trainer.state.log_history[0]["search/calls"] > 0


# Engines ------------------------------------------------------------------------------------------------------------


class Dying(tiny.WrappedEngine):
    """Writes turns of prompts with at most so many images, until so many were written."""

    images, left = 99, 0

    async def generate(self, token_ids: Any, images: Any, sampling: Any) -> Any:
        if len(images) > self.images:
            raise EngineError("HTTP 400: at most 1 image may be provided in one prompt")
        type(self).left -= 1
        if self.left < 0:
            raise EngineError("OutOfMemoryError: CUDA out of memory")
        return await super().generate(token_ids, images, sampling)


@pytest.mark.parametrize("filtered", [False, True])
def test_an_engine_that_is_out_of_memory_in_every_step_ends_the_run_with_the_first(
    tmp_path: Path, filtered: bool
) -> None:
    trainer = tiny.trainer(tiny.qwen25(), tmp_path, max_steps=12, filter_zero_variance_groups=filtered)
    tiny.wrap_engine(trainer, type("Never", (Dying,), {"left": 0}))
    with pytest.raises(EngineLost, match=r"^none of the last 4 rollouts worked; the first: OutOfMemoryError: CUDA"):
        trainer.train()
    assert trainer.state.global_step == 0 and not list(tmp_path.glob("checkpoint-*"))


def test_an_engine_that_gives_out_later_leaves_the_last_whole_step(tmp_path: Path) -> None:
    trainer = tiny.trainer(tiny.qwen25(), tmp_path, tiny.tasks(8), max_steps=12)
    tiny.wrap_engine(trainer, type("Later", (Dying,), {"left": 26}))
    with pytest.raises(EngineLost, match="out of memory"):
        trainer.train()
    step = trainer.state.global_step
    assert step >= 1 and (tmp_path / f"checkpoint-{step}" / "trainer_state.json").is_file()


def test_an_engine_that_refuses_some_rollouts_every_time_ends_the_run(tmp_path: Path) -> None:
    """Those with too many pictures; what is left would be trained as if nothing were amiss."""
    trainer = tiny.trainer(tiny.qwen25(), tmp_path, tiny.tasks(8), max_steps=12, search_failure_window=16)
    tiny.wrap_engine(trainer, type("Narrow", (Dying,), {"left": 10_000, "images": 1}))
    with pytest.raises(EngineLost, match=r"rollouts failed.*max_rollout_failure_share.*at most 1 image"):
        trainer.train()
    assert trainer.state.global_step < 12


def test_one_prompt_that_cannot_be_rolled_out_does_not_end_a_run(tmp_path: Path) -> None:
    class Refusing(tiny.WrappedEngine):
        async def generate(self, token_ids: Any, images: Any, sampling: Any) -> Any:
            if sampling.affinity == "task1":
                raise EngineError("this picture is broken")
            return await super().generate(token_ids, images, sampling)

    options: dict[str, Any] = {"per_device_train_batch_size": 2, "max_steps": 8}
    trainer = tiny.trainer(tiny.qwen25(), tmp_path, tiny.tasks(8), **options)
    tiny.wrap_engine(trainer, Refusing)
    trainer.train()
    assert trainer.state.global_step == 8 and trainer.collector.outage.lost_at_end() is None


def test_an_evaluation_under_way_ends_the_run_likewise(tmp_path: Path) -> None:
    trainer: Any = tiny.trainer(tiny.qwen25(), tmp_path, tiny.tasks(8), max_steps=4)
    few: Any = {"x": tiny.dataset(tiny.tasks(3))}
    trainer.eval_dataset = few
    trainer.args.eval_strategy, trainer.args.eval_steps = IntervalStrategy.STEPS, 2
    tiny.wrap_engine(trainer, Dying)
    Dying.left = 10_000
    trainer.add_callback(_AtStep(2, lambda: setattr(Dying, "left", 0)))
    with pytest.raises(EngineLost, match=r"^none of 3 rollouts worked; the first: OutOfMemoryError"):
        trainer.train()
    assert (tmp_path / "checkpoint-2" / "trainer_state.json").is_file()


class _AtStep(TrainerCallback):
    def __init__(self, step: int, do: Callable[[], Any]) -> None:
        self._step, self._do = step, do

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._step:
            self._do()
