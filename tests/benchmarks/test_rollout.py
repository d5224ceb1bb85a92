"""What the rollout benchmark concludes from its measurements: the ideal, the bound, and the scenario itself."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st


sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.rollout.calibrate import BATCHES, fitted, typical
from benchmarks.rollout.measure import round_costs
from benchmarks.rollout.replay import EngineCost, Turn, lower_bound, packed_seconds, replay, turns_of, work_of
from benchmarks.rollout.scenario import GROUP, Scenario
from benchmarks.rollout.schedulers import Tokens
from benchmarks.rollout.spans import Spans


COST = EngineCost((1, 2, 4), (0.010, 0.012, 0.016), prefill=0.001)
TURNS = st.builds(Turn, st.integers(0, 50), st.integers(1, 30), st.floats(0.0, 2.0))
WORK = st.lists(st.lists(TURNS, min_size=1, max_size=3), min_size=1, max_size=6)


def test_one_rollout_takes_its_own_time() -> None:
    turns = [Turn(10, 5, 0.5), Turn(20, 3, 0.0)]
    expected = 10 * 0.001 + 5 * 0.010 + 0.5 + 20 * 0.001 + 3 * 0.010
    assert replay([turns], COST) == pytest.approx(expected)
    assert lower_bound([turns], COST).critical_path == pytest.approx(expected)


def test_rollouts_share_iterations() -> None:
    assert replay([[Turn(0, 10)], [Turn(0, 10)]], COST) == pytest.approx(10 * 0.012)
    assert replay([[Turn(0, 10)], [Turn(0, 4)]], COST) == pytest.approx(4 * 0.012 + 6 * 0.010)


def test_a_tool_of_one_rollout_is_no_wait_of_the_other() -> None:
    searching, talking = [Turn(0, 2, 1.0), Turn(0, 2)], [Turn(0, 50)]
    assert replay([searching, talking], COST) == pytest.approx(2 * 0.012 + 1.0 + 2 * 0.010, abs=0.02)


@given(WORK)
def test_no_schedule_beats_the_bound(work: list[list[Turn]]) -> None:
    assert replay(work, COST) >= lower_bound(work, COST).seconds - 1e-9


@given(WORK, st.integers(1, 8))
def test_larger_batches_pack_no_worse(work: list[list[Turn]], most: int) -> None:
    assert packed_seconds(work, COST, most + 1) <= packed_seconds(work, COST, most) + 1e-12


def test_the_cost_of_other_sizes_is_read_off_a_line() -> None:
    assert [COST.decode(b) for b in (1, 3, 4, 6)] == pytest.approx([0.010, 0.014, 0.016, 0.020])


def test_work_is_what_no_cache_holds() -> None:
    tokens = Tokens(tuple(range(100)), tuple(range(60)), (1,) * 20 + (0,) * 30 + (1,) * 10)
    first, second = turns_of(tokens, [0.3], block=32)
    assert (first.new_tokens, first.decoded, first.tool_seconds) == (100, 20, 0.3)
    assert (second.new_tokens, second.decoded, second.tool_seconds) == (150 - 96, 10, 0.0)
    shared = work_of([tokens] * 2, [(), ()], block=32, group=2)
    assert [row[0].new_tokens for row in shared] == [100, 4]


def test_a_round_is_judged_by_the_calibrations_around_it() -> None:
    slow, fast = (fitted([factor * (0.004 + 0.0003 * b) for b in BATCHES], 3e-5, 1e-3) for factor in (2.0, 1.0))
    assert slow.linear and slow.a == pytest.approx(0.008) and slow.c == pytest.approx(0.0006)
    assert typical([slow, fast, fast]).a == pytest.approx(0.004)
    costs = round_costs([fast, slow, slow])
    assert [cost.decode(1) for cost in costs] == pytest.approx([1.5 * 0.0043, 2 * 0.0043])


def test_a_scenario_follows_from_its_seed_and_a_smaller_one_is_its_beginning() -> None:
    one, same, small = Scenario(32, 3), Scenario(32, 3), Scenario(16, 3)
    assert one.rows == same.rows and small.rows == one.rows[:16] and Scenario(32, 4).rows != one.rows
    groups = [row.group for row in one.rows]
    assert groups == [index // GROUP for index in range(32)]
    with pytest.raises(ValueError, match="multiple of 8"):
        Scenario(12, 0)


def test_spans_are_covered_and_shared_time() -> None:
    engine, tools = Spans(), Spans()
    engine.items += [(0.0, 2.0), (1.0, 3.0), (5.0, 6.0)]
    tools.items += [(2.5, 5.5)]
    assert engine.covered() == pytest.approx(4.0)
    assert tools.shared(engine) == pytest.approx(1.0)
