"""An outage is judged by all that a run has seen, before and after it was resumed."""

import json
from collections import Counter
from pathlib import Path

import pytest
import tiny

from mmsearch_trl.core.errors import EngineLost, SearchLost
from mmsearch_trl.core.observation import FailureKind
from mmsearch_trl.rollout.outage import OutageMonitor, Tally


GOOD = Tally(rollouts=10, searches=10)
BROKEN = Tally(rollouts=10, failed=8, searches=10, first_failure="out of memory")
UNANSWERED = Tally(rollouts=10, searches=10, search_failures=Counter({FailureKind.TIMEOUT: 8}))


def monitor() -> OutageMonitor:
    return OutageMonitor(0.2, 0.2, 40)


@pytest.mark.parametrize(("bad", "error"), [(BROKEN, EngineLost), (UNANSWERED, SearchLost)])
def test_a_resumed_run_ends_at_the_batch_at_which_the_uninterrupted_one_does(
    bad: Tally, error: type[Exception]
) -> None:
    batches = [GOOD, bad, GOOD, bad]
    whole = monitor()
    expected = [whole.lost(batch) for batch in batches]
    assert expected[:3] == [None] * 3 and isinstance(expected[3], error)
    for killed_after in (1, 2, 3):
        first, second = monitor(), monitor()
        for batch in batches[:killed_after]:
            first.lost(batch)
        second.go_on_from(json.loads(json.dumps(first.state())))
        found = [second.lost(batch) for batch in batches[killed_after:]]
        assert [str(each) for each in found] == [str(each) for each in expected[killed_after:]]


def test_failures_in_a_row_are_counted_over_a_resume() -> None:
    all_failed = Tally(rollouts=9, failed=9, first_failure="gone")
    first, second = monitor(), monitor()
    assert [first.lost(all_failed) for _ in range(2)] == [None, None]
    second.go_on_from(first.state())
    assert str(second.lost(all_failed)) == "none of the last 27 rollouts worked; the first: gone"
    assert monitor().lost(all_failed) is None


def test_what_ended_a_run_is_forgotten_by_the_run_that_goes_on() -> None:
    judge = monitor()
    lost = [judge.lost(BROKEN) for _ in range(4)]
    assert isinstance(lost[-1], EngineLost) and not judge.has_seen
    assert judge.state() == monitor().state()
    assert judge.lost(BROKEN) is None


@pytest.mark.slow
def test_a_checkpoint_holds_what_was_seen_and_not_what_ended_the_run(tmp_path: Path) -> None:
    trainer = tiny.trainer(tiny.qwen25(), tmp_path)
    outage = trainer.collector.outage
    outage.lost(Tally(rollouts=3, failed=1, first_failure="gone"))
    seen, step_end = outage.state(), trainer._at_step_end()
    outage.lost(Tally(rollouts=5))  # of the step that is broken off
    trainer._back_to(step_end)
    assert outage.state() == seen and trainer.batch_position().outage == seen
    outage.go_on_from({})  # as after an outage that ended the run
    trainer._back_to(step_end)
    assert not outage.has_seen
