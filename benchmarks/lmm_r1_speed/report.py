"""What came out, as tables in Markdown and a sentence on what bounds it."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.gpu.report import table
from benchmarks.lmm_r1_speed.clock import PARTS


Steps = Sequence[Mapping[str, Mapping[str, float]]]

TITLES = {"r1v": "one prompt at a time, HF generate", "ours": "this trainer, vLLM", "trl": "TRL 1.16, vLLM"}
PROMPTS = {False: "text", True: "pictures"}


def speed_table(report: Mapping[str, Any]) -> Iterator[str]:
    """A row for each arm on each kind of prompt: on the clock, then of processors by part, then the ratios to ours."""
    rollouts = report["prompts"] * report["group"]
    rows = []
    for kind, arms in report["speed"].items():
        for name, steps in arms.items():
            wall = _total(steps, "seconds")
            rows.append(
                {
                    "prompts": kind,
                    "arm": TITLES[name],
                    "step, s": _spread([sum(step["seconds"].values()) for step in steps]),
                    "rollouts/s": f"{rollouts / wall:.1f}",
                    "tokens/s": f"{rollouts * report['tokens'] / wall:.0f}",
                    "over ours": f"{wall / _total(arms['ours'], 'seconds'):.2f}",
                    "processor, s": _spread([sum(step["processor"].values()) for step in steps]),
                    **{part: f"{_part(steps, part):.2f}" for part in PARTS},
                    "over ours ": f"{_total(steps, 'processor') / _total(arms['ours'], 'processor'):.2f}",
                }
            )
    yield from table(tuple(rows[0]), rows)
    yield ""
    for kind, arms in report["speed"].items():
        yield _bound(kind, arms)


def _bound(kind: str, arms: Mapping[str, Steps]) -> str:
    """What is left to win: the ratio if this trainer generated in no time."""
    generating = {name: _part(steps, "generate") for name, steps in arms.items()}
    total = {name: _total(steps, "processor") for name, steps in arms.items()}
    share = {name: f"{generating[name] / total[name]:.0%}" for name in arms}
    faster = {name: f"{generating['r1v'] / generating[name]:.1f}" for name in arms}
    return (
        f"{kind}: of a step's processor time generating is {share['r1v']} one prompt at a time and {share['ours']} in "
        f"ours, which generates for {faster['ours']} times less (TRL on vLLM: {faster['trl']} times). If generating "
        f"took no time, the ratio of steps would be {total['r1v'] / (total['ours'] - generating['ours']):.2f}: what "
        "bounds it is scoring and training."
    )


def parity_table(report: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        {
            "engine": engine,
            "prompts": kind,
            "one call, s": _spread(found["call"]),
            "rollout, s": _spread(found["ours"]),
            "rollout / call": f"{median(r := found['ratios']):.2f} ({min(r):.2f} to {max(r):.2f})",
            "of processor time": f"{found['cpu_ratio']:.2f}",
        }
        for engine, kinds in report["parity"].items()
        for kind, found in kinds.items()
    ]
    yield from table(tuple(rows[0]), rows)


def _total(steps: Steps, clock: str) -> float:
    return median(sum(step[clock].values()) for step in steps)


def _part(steps: Steps, part: str) -> float:
    return median(step["processor"][part] for step in steps)


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"
