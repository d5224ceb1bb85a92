import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch_trl.search.calls.rate import TokenBucket


def test_calls_at_once_are_spread_over_time() -> None:
    bucket = TokenBucket(per_second=2.0)
    assert [bucket.reserve(0.0) for _ in range(4)] == [0.0, 0.5, 1.0, 1.5]
    assert bucket.reserve(2.0) == 0.0


def test_a_quiet_time_earns_a_burst_and_no_more() -> None:
    bucket = TokenBucket(per_second=1.0, burst=3.0)
    assert [bucket.reserve(100.0) for _ in range(4)] == [0.0, 0.0, 0.0, 1.0]


def test_a_place_given_back_is_the_next_one_s() -> None:
    bucket = TokenBucket(per_second=1.0)
    assert [bucket.reserve(0.0), bucket.reserve(0.0)] == [0.0, 1.0]
    bucket.give_back()
    assert bucket.reserve(0.0) == 1.0


@given(st.floats(0.5, 50.0), st.integers(1, 5), st.lists(st.floats(0.0, 2.0), min_size=1, max_size=80))
def test_no_window_has_more_calls_than_the_rate_allows(rate: float, burst: int, gaps: list[float]) -> None:
    bucket, now, starts = TokenBucket(rate, float(burst)), 0.0, []
    for gap in gaps:
        now += gap
        starts.append(now + bucket.reserve(now))
    for first in range(len(starts)):
        for last in range(first, len(starts)):
            allowed = burst + rate * (starts[last] - starts[first])
            assert last - first + 1 <= allowed + 1e-6 or last - first + 1 == pytest.approx(allowed)
