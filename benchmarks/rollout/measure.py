"""What is run for one scenario, in which order, and what is concluded from it.

The schedulers take turns and their order alternates, so that a slow minute of the machine hits both; a first round is
thrown away, and the engine is calibrated between the rounds: a round's ideal is that of the engine as it was right
before and after. TRL's loop is run once: it mostly sleeps, one call after another, and varies little.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from benchmarks.rollout.calibrate import Calibration, typical
from benchmarks.rollout.replay import EngineCost, LowerBound, lower_bound, replay, work_of
from benchmarks.rollout.rig import DOUBLE_LATENCY, HEADLINE, NO_LATENCY, Rig, Variant
from benchmarks.rollout.scenario import GROUP, Scenario
from benchmarks.rollout.schedulers import Run, Tokens
from benchmarks.rollout.server import BLOCK


_PARITY_PAIRS = 7
"""Runs of each without tool times: these are short, and a small difference is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """All runs of one scenario."""

    scenario: Scenario
    time_scale: float
    calibrations: tuple[Calibration, ...]
    """One before each round, one after the last."""
    trl: Run
    lockstep: tuple[Run, ...]
    ours: tuple[Run, ...]
    lockstep_no_latency: tuple[Run, ...]
    ours_no_latency: tuple[Run, ...]
    ours_double_latency: Run
    expected: tuple[Tokens, ...]
    """What every scheduler should have come to."""


def measure(
    rig: Rig, scenario: Scenario, expected: Sequence[Tokens], repeats: int, tell: Callable[[str], None]
) -> Measured:
    """Run everything; `tell` hears what is being done."""

    def run(name: str, work: Callable[[], Run]) -> Run:
        result = work()
        tell(f"K={scenario.k} seed={scenario.seed} {name}: {result.seconds:.2f} s")
        return result

    run("lockstep, warm-up", lambda: rig.lockstep(scenario, NO_LATENCY))
    run("ours, warm-up", lambda: rig.ours(scenario, NO_LATENCY))
    trl = run("TRL's loop", lambda: rig.trl(scenario))

    def in_turn(variant: Variant, count: int, after: Callable[[], None]) -> tuple[list[Run], list[Run]]:
        """So many runs of the lockstep loop and of ours."""
        schedulers = {"lockstep": rig.lockstep, "ours": rig.ours}
        runs: dict[str, list[Run]] = {name: [] for name in schedulers}
        for repeat in range(count):
            for name in list(schedulers) if repeat % 2 else reversed(schedulers):
                title = f"{name}{'' if variant.scale else ', no latency'}"
                runs[name].append(run(title, lambda name=name: schedulers[name](scenario, variant)))
            after()
        return runs["lockstep"], runs["ours"]

    calibrations = [rig.calibrate()]
    lockstep, ours = in_turn(HEADLINE, repeats, lambda: calibrations.append(rig.calibrate()))
    lockstep_no_latency, ours_no_latency = in_turn(NO_LATENCY, _PARITY_PAIRS, lambda: None)
    double = run("ours, double latency", lambda: rig.ours(scenario, DOUBLE_LATENCY))
    return Measured(
        scenario=scenario,
        time_scale=rig.time_scale,
        calibrations=tuple(calibrations),
        trl=trl,
        lockstep=tuple(lockstep),
        ours=tuple(ours),
        lockstep_no_latency=tuple(lockstep_no_latency),
        ours_no_latency=tuple(ours_no_latency),
        ours_double_latency=double,
        expected=tuple(expected),
    )


def seconds(runs: Sequence[Run]) -> float:
    return median(run.seconds for run in runs)


def ideal(run: Run, cost: EngineCost) -> float:
    """`T*` of a run's own tokens and tool times, seconds."""
    return replay(work_of(run.tokens, run.tool_seconds, BLOCK, GROUP), cost)


def bound(run: Run, cost: EngineCost) -> LowerBound:
    """`LB` of a run's own tokens and tool times."""
    return lower_bound(work_of(run.tokens, run.tool_seconds, BLOCK, GROUP), cost)


def round_costs(calibrations: Sequence[Calibration]) -> list[EngineCost]:
    """The engine in each round, from the calibrations around it."""
    return [typical(around).cost() for around in pairwise(calibrations)]


def efficiency(runs: Sequence[Run], costs: Sequence[EngineCost]) -> float:
    """`rho`: attainable over measured time, the median of the rounds."""
    return median(ideal(run, cost) / run.seconds for run, cost in zip(runs, costs, strict=True))


def summary(measured: Measured) -> dict[str, Any]:
    """The report of one scenario, ready for JSON."""
    calibration, costs = typical(measured.calibrations), round_costs(measured.calibrations)
    every = [
        measured.trl,
        *measured.lockstep,
        *measured.ours,
        *measured.lockstep_no_latency,
        *measured.ours_no_latency,
        measured.ours_double_latency,
    ]
    bounds = [bound(run, cost) for run, cost in zip(measured.ours, costs, strict=True)]
    ratio = seconds(measured.ours_no_latency) / seconds(measured.lockstep_no_latency)
    return {
        "k": measured.scenario.k,
        "seed": measured.scenario.seed,
        "seconds": {
            "trl": measured.trl.seconds,
            "lockstep": seconds(measured.lockstep),
            "ours": seconds(measured.ours),
        },
        "rho": efficiency(measured.ours, costs),
        "eta": median(least.seconds / run.seconds for least, run in zip(bounds, measured.ours, strict=True)),
        "zero_latency_ratio": ratio,
        "identical_tokens": all(run.tokens == measured.expected for run in every),
        "engine_busy": {
            "trl": measured.trl.engine_busy,
            "lockstep": median(run.engine_busy for run in measured.lockstep),
            "ours": median(run.engine_busy for run in measured.ours),
        },
        "details": {
            "runs": {name: [run_report(run) for run in runs] for name, runs in _named(measured).items()},
            "time_scale": measured.time_scale,
            "rho_lockstep": efficiency(measured.lockstep, costs),
            "rho_no_latency": efficiency(
                measured.ours_no_latency, [calibration.cost()] * len(measured.ours_no_latency)
            ),
            "lower_bound": asdict(bounds[0]) | {"seconds": bounds[0].seconds},
            "ideal_seconds": [ideal(run, cost) for run, cost in zip(measured.ours, costs, strict=True)],
            "calibration": asdict(calibration)
            | {"linear": calibration.linear, "each_decode": [each.decode for each in measured.calibrations]},
            "scaling": _scaling(measured, calibration.cost()),
            "work": _work(measured),
        },
    }


def _named(measured: Measured) -> dict[str, Sequence[Run]]:
    return {
        "trl": [measured.trl],
        "lockstep": measured.lockstep,
        "ours": measured.ours,
        "lockstep_no_latency": measured.lockstep_no_latency,
        "ours_no_latency": measured.ours_no_latency,
        "ours_double_latency": [measured.ours_double_latency],
    }


def run_report(run: Run) -> dict[str, Any]:
    return {
        "seconds": run.seconds,
        "engine_busy": run.engine_busy,
        "tool_overlap": run.tool_overlap,
        "cpu_seconds": dict(run.cpu_seconds),
        "tool_seconds": sum(map(sum, run.tool_seconds)),
        "rollout_p50_p95": run.row_percentiles(),
        "engine_spans": run.engine.since(run.started),
        "tool_spans": run.tools.since(run.started),
    }


def _scaling(measured: Measured, cost: EngineCost) -> dict[str, float]:
    """Doubled tool times: the run should grow by the critical path's growth, not by the sum of all tool times."""
    once, twice = measured.ours[0], measured.ours_double_latency
    bounds = [bound(run, cost) for run in (once, twice)]
    return {
        "run_grew_by": twice.seconds - seconds(measured.ours),
        "critical_path_grew_by": bounds[1].critical_path - bounds[0].critical_path,
        "ideal_grew_by": ideal(twice, cost) - ideal(once, cost),
        "tool_seconds_grew_by": sum(map(sum, twice.tool_seconds)) - sum(map(sum, once.tool_seconds)),
    }


def _work(measured: Measured) -> dict[str, int]:
    run = measured.ours[0]
    turns = [turn for rollout in work_of(run.tokens, run.tool_seconds, BLOCK, GROUP) for turn in rollout]
    return {
        "turns": len(turns),
        "tool_calls": sum(map(len, run.tool_seconds)),
        "decoded_tokens": sum(turn.decoded for turn in turns),
        "new_prompt_tokens": sum(turn.new_tokens for turn in turns),
    }
