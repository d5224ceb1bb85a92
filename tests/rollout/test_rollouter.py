"""Rollouts for synchronous code."""

import tiny

from mmsearch_trl.rollout.rollouter import Rollouter


FAMILY = tiny.qwen25()


def test_a_name_makes_a_trajectory_whatever_it_is_rolled_out_with() -> None:
    protocol, model = FAMILY.restless(), FAMILY.model()
    rollouter = Rollouter(protocol, tiny.CannedTools(), tiny.LIMITS)
    engine = FAMILY.engine(model, protocol.chat)
    given = tiny.tasks(4)
    names = [f"run/{task.id}" for task in given]
    together = rollouter.run(given, engine, names, 1.0).trajectories
    [alone] = rollouter.run(given[2:3], engine, names[2:3], 1.0).trajectories
    [renamed] = rollouter.run(given[2:3], engine, ["other"], 1.0).trajectories
    assert alone.token_ids == together[2].token_ids != renamed.token_ids
    rollouter.close()


def test_a_report_holds_the_calls_and_times_of_its_batch_alone() -> None:
    tools = tiny.CannedTools()
    protocol = FAMILY.restless()
    rollouter = Rollouter(protocol, tools, tiny.LIMITS)
    engine = FAMILY.engine(FAMILY.model(), protocol.chat)
    reports = [rollouter.run(tiny.tasks(3), engine, [f"{run}/{i}" for i in range(3)], 1.0) for run in "ab"]
    for report in reports:
        assert len(report.calls) == sum(1 for t in report.trajectories for _ in t.observations) > 0
        assert 0 < report.engine_busy_seconds <= report.seconds
    assert len(tools.calls) == sum(len(report.calls) for report in reports)
    rollouter.close()
