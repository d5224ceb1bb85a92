import pytest

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.failure_monitor import FailureMonitor
from mmsearch_trl.core.observation import FailureKind
from mmsearch_trl.search.calls.budget import Budget


def test_a_share_over_the_window_ends_the_run_and_says_what_failed() -> None:
    watch = FailureMonitor(0.2, window=100)
    assert watch.abort_reason(60, {FailureKind.TIMEOUT: 30}) is None, "too few calls to judge by"
    abort_reason = watch.abort_reason(60, {FailureKind.TIMEOUT: 1, FailureKind.UNAVAILABLE: 5})
    assert abort_reason is not None
    assert "36 of the last 120 searches failed, lately most of them with 'unavailable'" in abort_reason


def test_what_lies_before_the_window_is_forgotten() -> None:
    watch = FailureMonitor(0.2, window=100)
    watch.abort_reason(50, {FailureKind.TIMEOUT: 50})
    assert watch.abort_reason(50, {}) is not None
    assert watch.abort_reason(50, {}) is None
    assert watch.abort_reason(50, {FailureKind.TIMEOUT: 20}) is None, "20 of 100 is borne"
    assert watch.abort_reason(50, {FailureKind.TIMEOUT: 1}) is not None


@pytest.mark.parametrize("kind", [FailureKind.QUOTA_SPENT, FailureKind.KEY_REFUSED])
def test_one_failure_that_lasts_is_enough(kind: FailureKind) -> None:
    assert FailureMonitor(1.0, window=1000).abort_reason(64, {kind: 1}) is not None


def test_no_calls_say_nothing() -> None:
    watch = FailureMonitor(0.0, window=1)
    assert watch.abort_reason(0, {}) is None and watch.abort_reason(10, {}) is None
    assert watch.abort_reason(10, {FailureKind.TIMEOUT: 1}) is not None


def test_a_budget_allows_its_calls_and_not_one_more() -> None:
    budget = Budget(2)
    budget.spend()
    budget.spend()
    with pytest.raises(SearchError, match="all 2 paid calls") as caught:
        budget.spend()
    assert caught.value.failure.kind is FailureKind.QUOTA_SPENT and budget.spent == 2
    free = Budget()
    for _ in range(1000):
        free.spend()
