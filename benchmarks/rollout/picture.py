"""The study as one image: seconds by number of rollouts, and who worked when."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.rollout.report import NAMES
from benchmarks.rollout.study import ABLATION_SEED, ABLATION_SIZE, SEEDS, read, scenario_path
from matplotlib.axes import Axes
from matplotlib.figure import Figure


_COLOURS = {"trl": "#b0b7c3", "lockstep": "#e8a33d", "ours": "#2a6fb0"}
_ENGINE, _TOOLS = "#2a6fb0", "#e8a33d"
_BAR = 0.26


def draw(out: Path, target: Path) -> None:
    """Write the image from a study's reports."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    _bars(left, {k: [read(scenario_path(out, k, seed))["seconds"] for seed in seeds] for k, seeds in SEEDS.items()})
    _timelines(right, read(scenario_path(out, ABLATION_SIZE, ABLATION_SEED))["details"]["runs"])
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)


def _bars(axes: Axes, seconds: Mapping[int, Sequence[Mapping[str, float]]]) -> None:
    for place, (name, title) in enumerate(NAMES.items()):
        at = [index + (place - 1) * _BAR for index in range(len(seconds))]
        heights = [median(each[name] for each in of_seeds) for of_seeds in seconds.values()]
        bars = axes.bar(at, heights, _BAR * 0.92, color=_COLOURS[name], label=title)
        axes.bar_label(bars, [f"{height:.0f}" for height in heights], padding=2, fontsize=9)
    axes.set_xticks(range(len(seconds)), [f"K = {k}" for k in seconds])
    axes.set_ylabel("seconds until the last rollout has ended")
    axes.set_title("The same tokens and tool times for each", fontsize=10)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)


def _timelines(axes: Axes, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    for place, name in enumerate(NAMES):
        run = runs[name][0]
        for offset, spans, colour in ((0.05, "engine_spans", _ENGINE), (-0.33, "tool_spans", _TOOLS)):
            pieces = [(start, end - start) for start, end in run[spans]]
            axes.broken_barh(pieces, (place + offset, 0.28), facecolors=colour)
        axes.text(run["seconds"], place, f"  {run['seconds']:.1f} s", va="center", fontsize=9)
    axes.broken_barh([], (0, 0), facecolors=_ENGINE, label="the engine has at least one request")
    axes.broken_barh([], (0, 0), facecolors=_TOOLS, label="at least one tool call is under way")
    axes.set_yticks(range(len(NAMES)), [title.replace(", ", ",\n") for title in NAMES.values()])
    axes.invert_yaxis()
    axes.set_xlim(0, max(runs[name][0]["seconds"] for name in NAMES) * 1.12)
    axes.set_xlabel("seconds")
    axes.set_title(f"Who works when, K = {ABLATION_SIZE}, seed {ABLATION_SEED}", fontsize=10)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
