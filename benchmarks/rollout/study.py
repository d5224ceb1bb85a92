# ruff: noqa: RUF001
"""The study behind `docs/performance.md`: other numbers of rollouts, and one thing changed at a time.

Every scenario's report is kept below the output folder and not measured again, so a study that was stopped goes on.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.rollout.measure import measure, run_report, summary
from benchmarks.rollout.report import NAMES
from benchmarks.rollout.rig import HEADLINE, Rig, Variant
from benchmarks.rollout.scenario import Scenario
from benchmarks.rollout.schedulers import Tokens


SEEDS = {16: (0, 1, 2), 64: (0, 1, 2, 3, 4), 128: (0,)}
"""By number of rollouts; the seeds are the repetitions, and their median is shown."""
ABLATION_SIZE, ABLATION_SEED = 64, 0
ABLATIONS = {
    "as in the headline": HEADLINE,
    "searches of one image shared in a group": Variant(coalescing=True),
    "shared, and answers kept": Variant(coalescing=True, cache=True),
    "16 tool calls at a time": Variant(slots=16),
    "4 tool calls at a time": Variant(slots=4),
    "tools half as slow": Variant(scale=0.5),
    "tools a quarter as slow": Variant(scale=0.25),
    "tools that take no time": Variant(scale=0.0),
}
ABLATION_REPEATS = 2


def scenarios() -> list[Scenario]:
    return [Scenario(k, seed) for k, seeds in SEEDS.items() for seed in seeds]


def study(
    rig: Rig,
    expected: Mapping[tuple[int, int], Sequence[Tokens]],
    out: Path,
    tell: Callable[[str], None],
) -> None:
    """Measure what has not been measured yet."""
    for scenario in scenarios():
        target = expected[scenario.k, scenario.seed]
        _once(
            scenario_path(out, scenario.k, scenario.seed),
            lambda scenario=scenario, target=target: summary(measure(rig, scenario, target, 1, tell)),
        )
    _once(out / "ablations.json", lambda: _ablations(rig, tell))


def scenario_path(out: Path, k: int, seed: int) -> Path:
    return out / f"k{k}_seed{seed}.json"


def _once(path: Path, work: Callable[[], dict[str, Any]]) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(work(), indent=1), encoding="utf-8")


def _ablations(rig: Rig, tell: Callable[[str], None]) -> dict[str, Any]:
    """Runs of ours and of the lockstep loop by variant; the variants take turns."""
    scenario = Scenario(ABLATION_SIZE, ABLATION_SEED)
    runs: dict[str, dict[str, list[Any]]] = {name: {"lockstep": [], "ours": []} for name in ABLATIONS}
    for _ in range(ABLATION_REPEATS):
        for name, variant in ABLATIONS.items():
            for scheduler in ("lockstep", "ours"):
                run = getattr(rig, scheduler)(scenario, variant)
                tell(f"{name}, {scheduler}: {run.seconds:.2f} s")
                runs[name][scheduler].append(run_report(run))
    return runs


def markdown(out: Path) -> Iterator[str]:
    """Two tables: schedulers by number of rollouts, the median where there are several seeds, and the ablations."""
    yield "| K | " + " | ".join(f"{title}, s" for title in NAMES.values()) + _HEAD
    yield "|---:" * 9 + "|"
    for k, seeds in SEEDS.items():
        yield _row(k, [read(scenario_path(out, k, seed)) for seed in seeds])
    ablations = read(out / "ablations.json")
    yield from (
        "",
        f"| K={ABLATION_SIZE}, seed {ABLATION_SEED} | lockstep, s | ours, s | ratio |",
        "|---|---:|---:|---:|",
    )
    for name, runs in ablations.items():
        lockstep, ours = (median(run["seconds"] for run in runs[each]) for each in ("lockstep", "ours"))
        yield f"| {name} | {lockstep:.1f} | {ours:.1f} | {lockstep / ours:.2f} |"


_HEAD = " | TRL / ours | lockstep / ours | ρ | η | engine busy: TRL, lockstep, ours |"


def _row(k: int, reports: Sequence[Mapping[str, Any]]) -> str:
    def typical(read: Callable[[Mapping[str, Any]], float]) -> float:
        return median(read(report) for report in reports)

    cells = [str(k)]
    cells += [f"{typical(lambda report, name=name: report['seconds'][name]):.1f}" for name in NAMES]
    for name in ("trl", "lockstep"):
        factor = typical(lambda report, name=name: report["seconds"][name] / report["seconds"]["ours"])
        cells.append(f"{factor:.1f}×" if name == "trl" else f"{factor:.2f}×")
    cells += [f"{typical(lambda report, name=name: report[name]):.2f}" for name in ("rho", "eta")]
    busy = [f"{typical(lambda report, name=name: report['engine_busy'][name]):.0%}" for name in NAMES]
    return f"| {' | '.join([*cells, ', '.join(busy)])} |"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
