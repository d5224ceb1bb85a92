from hypothesis import given
from hypothesis import strategies as st

from mmsearch_trl.search.calls.breaker import CircuitBreaker


def test_it_opens_after_failures_in_a_row_and_lets_one_call_see_whether_the_backend_is_back() -> None:
    breaker = CircuitBreaker(failures=3, pause_s=10.0)
    for _ in range(3):
        assert breaker.let_through(0.0)
        breaker.ended(failed=True, now=0.0)
    assert not breaker.let_through(9.9)
    assert breaker.let_through(10.0)
    assert not breaker.let_through(10.0), "one at a time"
    breaker.ended(failed=True, now=11.0)
    assert not breaker.let_through(20.9)
    assert breaker.let_through(21.0)
    breaker.ended(failed=False, now=21.0)
    assert breaker.let_through(21.0) and breaker.let_through(21.0)


def test_a_success_starts_the_count_anew() -> None:
    breaker = CircuitBreaker(failures=2, pause_s=10.0)
    for failed in (True, False, True):
        breaker.ended(failed=failed, now=0.0)
    assert breaker.let_through(0.0)


def test_a_probe_that_is_given_up_makes_room_for_another() -> None:
    breaker = CircuitBreaker(failures=1, pause_s=1.0)
    breaker.ended(failed=True, now=0.0)
    assert breaker.let_through(1.0)
    breaker.abandoned()
    assert breaker.let_through(1.0)


@given(st.lists(st.tuples(st.floats(0.0, 5.0), st.booleans()), max_size=60))
def test_a_backend_that_is_back_is_always_asked_again(history: list[tuple[float, bool]]) -> None:
    breaker, now = CircuitBreaker(failures=3, pause_s=4.0), 0.0
    for wait, failed in history:
        now += wait
        if breaker.let_through(now):
            breaker.ended(failed=failed, now=now)
    assert breaker.let_through(now + 4.0)
