"""The rule by which a rollout is held back, over arbitrary readings and against a cache that answers."""

import math
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mmsearch_trl.engine.pressure import Pressure
from mmsearch_trl.rollout.backpressure import LOW_SHARE, STALE_SECONDS, Backpressure


USAGE = st.floats(0, 1)
MAXIMUM = st.integers(1, 600)


def reading(usage: float, at: float = 1.0, *, preemptions: int = 0, waiting: int = 0) -> Pressure:
    return Pressure(kv_usage=usage, preemptions=preemptions, running=1, waiting=waiting, read_at=at)


def told(rule: Backpressure, *usages: float, in_flight: int | None = None) -> list[int]:
    """Caps after a reading a second, with all of the cap in use unless said otherwise."""
    first = rule._read_at + 1 if math.isfinite(rule._read_at) else 1.0
    return [
        rule.observe(reading(usage, at), in_flight=rule.cap if in_flight is None else in_flight, now=at)
        for at, usage in enumerate(usages, start=int(first))
    ]


@given(
    MAXIMUM,
    st.floats(0.01, 1),
    st.lists(
        st.tuples(
            st.one_of(USAGE, st.just(math.nan), st.just(-1.0)),
            st.integers(0, 50),
            st.integers(0, 5),
            st.integers(0, 700),
            st.floats(-10, 10),
        )
    ),
)
def test_the_cap_stays_within_its_bounds_whatever_is_read(
    maximum: int, high: float, events: list[tuple[float, int, int, int, float]]
) -> None:
    rule = Backpressure(maximum, high)
    for now, (usage, preemptions, waiting, in_flight, age) in enumerate(events):
        given_reading = reading(usage, now - age, preemptions=preemptions, waiting=waiting)
        assert rule.observe(given_reading, in_flight=in_flight, now=now) == rule.cap
        assert 1 <= rule.cap <= maximum


@given(MAXIMUM, st.lists(USAGE, max_size=8), USAGE, USAGE)
def test_a_fuller_cache_never_allows_more(maximum: int, before: list[float], one: float, other: float) -> None:
    caps = []
    for usage in sorted((one, other)):
        rule = Backpressure(maximum)
        told(rule, *before)
        caps += told(rule, usage)
    assert caps[0] >= caps[1]


@given(MAXIMUM, st.lists(USAGE, max_size=8), USAGE)
def test_a_preemption_is_a_full_cache_however_low_the_reading(maximum: int, before: list[float], usage: float) -> None:
    full, preempted = Backpressure(maximum), Backpressure(maximum)
    told(full, *before, 0.8)
    told(preempted, *before, 0.8)
    at = full._read_at + 1
    cap = preempted.observe(reading(usage, at, preemptions=1), in_flight=preempted.cap, now=at)
    assert cap == full.observe(reading(1.0, at), in_flight=full.cap, now=at)


def test_a_counter_that_begins_again_is_no_preemption() -> None:
    rule = Backpressure(64)
    for at, count in enumerate([7, 7, 0, 0], start=1):
        assert rule.observe(reading(0.8, at, preemptions=count), in_flight=64, now=at) == 64
    assert rule.observe(reading(0.8, 9, preemptions=1), in_flight=64, now=9) == 48


@given(MAXIMUM, st.lists(st.just(1.0), max_size=30))
def test_it_recovers_to_its_maximum_when_the_cache_empties(maximum: int, full: list[float]) -> None:
    rule = Backpressure(maximum)
    told(rule, *full)
    caps = told(rule, *[0.3] * 60)
    assert caps == sorted(caps) and caps[-1] == maximum


@given(MAXIMUM, st.lists(USAGE, max_size=8), USAGE)
def test_a_constant_reading_moves_the_cap_one_way_until_it_rests(
    maximum: int, before: list[float], usage: float
) -> None:
    rule = Backpressure(maximum)
    told(rule, *before)
    start = rule.cap
    caps = [start, *told(rule, *[usage] * 80)]
    assert caps in (sorted(caps), sorted(caps, reverse=True))
    assert caps[-1] == caps[-20]
    assert caps[-1] == (1 if usage >= 0.9 else maximum if usage <= LOW_SHARE * 0.9 else start)


@given(st.integers(8, 600), st.floats(0.0005, 1 / 10), st.floats(0.3, 1))
@example(8, 0.1, 0.5)
def test_a_cache_that_fills_in_proportion_is_brought_to_rest(maximum: int, share: float, high: float) -> None:
    rule, caps = Backpressure(maximum, high), []
    for at in range(1, 120):
        caps.append(rule.observe(reading(min(rule.cap * share, 1.0), at), in_flight=rule.cap, now=at))
    resting = caps[-40:]
    assert max(resting) - min(resting) <= (0 if min(resting) >= 8 else 1)
    assert max(resting) * share < high + share or resting[-1] == 1


def test_a_cut_waits_until_the_last_one_has_worked() -> None:
    rule = Backpressure(64)
    assert told(rule, 0.95, in_flight=64) == [48]
    assert told(rule, 1.0, 1.0, 1.0, in_flight=49) == [48, 48, 48], "what is in flight is still draining"
    assert told(rule, 0.95, in_flight=48) == [36]


def test_a_cut_is_of_what_is_in_flight_not_of_a_cap_that_nobody_reaches() -> None:
    assert told(Backpressure(512), 0.95, in_flight=40) == [30]


def test_a_cap_grows_only_while_it_is_what_holds_trajectories_back() -> None:
    rule = Backpressure(64)
    told(rule, 1.0)
    assert told(rule, 0.1, in_flight=47) == [48]
    assert rule.observe(reading(0.1, 9, waiting=3), in_flight=48, now=9) == 48
    assert rule.observe(reading(0.1, 10), in_flight=48, now=10) == 54


@pytest.mark.parametrize(
    "bad",
    [
        None,
        reading(1.0, 100 - STALE_SECONDS - 0.1),
        reading(math.nan, 100),
        reading(-0.1, 100),
        reading(1.0, 90, preemptions=9),
    ],
)
def test_no_reading_changes_nothing(bad: Pressure | None) -> None:
    rule = Backpressure(64)
    assert rule.observe(bad, in_flight=64, now=100) == 64
    assert rule.observe(reading(0.95, 100), in_flight=64, now=100) == 48, "a later good one counts as the first"


def test_a_reading_counts_once() -> None:
    rule = Backpressure(64)
    told(rule, 0.95, in_flight=64)
    again = reading(0.95, rule._read_at)
    assert rule.observe(again, in_flight=48, now=again.read_at) == 48
    assert rule.observe(replace(again, read_at=again.read_at + 1), in_flight=48, now=again.read_at + 1) == 36


@pytest.mark.parametrize(("maximum", "high"), [(0, 0.9), (-1, 0.9), (4, 0.0), (4, 1.1)])
def test_bounds_that_make_no_sense_are_refused(maximum: int, high: float) -> None:
    with pytest.raises(ValueError, match="cap of at least 1"):
        Backpressure(maximum, high)
