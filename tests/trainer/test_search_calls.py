"""What the searches of a batch came to, over all ranks, and a run that ends since its searches are not answered."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.errors import SearchError
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
    trainer = tiny.trainer(tiny.qwen25(), tmp_path, tiny.tasks(6), tools=search, max_steps=4, **options)
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", [FailureKind.QUOTA_SPENT, FailureKind.KEY_REFUSED])
def test_a_spent_quota_ends_the_run_after_the_step_and_saves_it(tmp_path: Path, kind: FailureKind) -> None:
    trainer = trained(tmp_path, Backend(0, kind))
    assert trainer.state.global_step == 1 and (tmp_path / "checkpoint-1").is_dir()
    assert trainer.ended_early is not None and "none will be" in trainer.ended_early


def test_the_last_paid_call_that_is_allowed_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backend = Backend(10_000, FailureKind.UNAVAILABLE)
    trainer = trained(tmp_path, backend, budget=Budget(3))
    assert trainer.ended_early is not None and "max_paid_calls" in trainer.ended_early
    assert backend.calls == 3
    print_searches(trainer.rollouter.tools, trainer.ranks)
    paid = [int(line.split(" tries paid")[0].split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert sum(paid) == 3 == sum(total.paid for total in trainer.rollouter.tools.totals.values())
    assert sum(log["search/paid_calls"] for log in trainer.state.log_history if "search/paid_calls" in log) == 3


def test_too_many_failures_end_the_run(tmp_path: Path) -> None:
    options = {"max_search_failure_share": 0.5, "search_failure_window": 4}
    trainer = trained(tmp_path, Backend(2, FailureKind.UNAVAILABLE), **options)
    assert trainer.ended_early is not None and "'unavailable'" in trainer.ended_early
    assert trainer.state.global_step < 4


def test_a_run_whose_searches_are_answered_goes_on(tmp_path: Path) -> None:
    trainer = trained(tmp_path, Backend(10_000, FailureKind.UNAVAILABLE), search_failure_window=1)
    assert trainer.ended_early is None and trainer.state.global_step == 4
    assert trainer.state.log_history[0]["search/calls"] > 0
