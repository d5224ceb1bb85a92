"""The learning curve of a run: how often it is right and how often it searches, by group, over the steps.

Curves are read from the training traces (per-step means, drawn faintly, and a centred moving average over them);
evaluations are points with a 95 % interval. Where nothing was measured there is no line: points of evaluations are not
joined, and a curve is broken where its group did not come up for longer than the average reaches.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, pairwise
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mmsearch_trl.core.boundaries import writing
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.statistics import wilson_interval
from mmsearch_trl.traces.records import TraceRecord


_SUFFIXES = (".png", ".pdf", ".svg")
SMOOTHING_STEPS = 7
"""Width of the moving average, in steps with rollouts: a group has few in each, and one's mean is mostly noise."""
_BLUE, _VERMILLION, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
_COLOURS = {
    "known": _BLUE,
    "search_free": _BLUE,
    "unknown": _VERMILLION,
    "search_required": _VERMILLION,
    "held_out": _GREEN,
}
_MORE_COLOURS = ("#AA4499", "#B98500", "#3C8DBC", "#666666", "#882255")
_INK = "#333333"
_LABEL_GAP = 0.055
"""Least distance between two labels, as a share of the axis."""


@dataclass(slots=True)
class Share:
    """So many of so many."""

    hits: int = 0
    n: int = 0

    def add(self, hit: bool) -> None:
        self.hits += hit
        self.n += 1

    @property
    def mean(self) -> float:
        return self.hits / self.n


@dataclass(slots=True)
class GroupCurve:
    """One group of one split: shares by step."""

    right: dict[int, Share] = field(default_factory=lambda: defaultdict(Share))
    searched: dict[int, Share] = field(default_factory=lambda: defaultdict(Share))


@dataclass(frozen=True, slots=True)
class LearningCurves:
    """Curves by group, in training and in evaluation; a record without a group is in `all`."""

    train: Mapping[str, GroupCurve]
    evaluation: Mapping[str, GroupCurve]

    @property
    def steps(self) -> list[int]:
        """Those with rollouts of training, in order."""
        curves = [series for curve in self.train.values() for series in (curve.right, curve.searched)]
        return sorted({step for series in curves for step in series})

    @property
    def judged(self) -> bool:
        """Whether it is known of any answer that it is right or wrong."""
        return any(curve.right for curves in (self.train, self.evaluation) for curve in curves.values())

    @property
    def searches(self) -> bool:
        """Whether there was anything to search with."""
        return any(curve.searched for curves in (self.train, self.evaluation) for curve in curves.values())

    @property
    def spacing(self) -> int:
        """Steps from one batch of rollouts to the next, as a rule: a batch may serve several steps."""
        gaps = [after - before for before, after in pairwise(self.steps)]
        return int(median(gaps)) if gaps else 1


def learning_curves(records: Iterable[TraceRecord]) -> LearningCurves:
    """Count right answers and searches by step and group; records of every split but `train` are evaluations.

    Raises:
        UserError: there is no record.
    """
    curves: dict[bool, dict[str, GroupCurve]] = {True: defaultdict(GroupCurve), False: defaultdict(GroupCurve)}
    for record in records:
        curve = curves[record.split == "train"][record.group or "all"]
        if record.outcome.searched is not None:
            curve.searched[record.step].add(record.outcome.searched)
        if record.outcome.right is not None:
            curve.right[record.step].add(record.outcome.right)
    if not (curves[True] or curves[False]):
        raise UserError("no trajectory to plot: the traces are empty")
    return LearningCurves(dict(sorted(curves[True].items())), dict(sorted(curves[False].items())))


def plot_learning(curves: LearningCurves, out: Path) -> Path:
    """Draw the curves to `out` (PNG, PDF or SVG by its suffix; 150 dpi) and return it.

    Raises:
        UserError: `out` cannot be written, or has the suffix of another kind of file; or nothing was measured.
    """
    if out.suffix not in _SUFFIXES:
        raise UserError(f"{out}: a plot is written as one of {', '.join(_SUFFIXES)}")
    panels = [("Right answers", "right")] if curves.judged else []
    panels += [("Trajectories that search", "searched")] if curves.searches else []
    if not panels:
        raise UserError("there is nothing to plot: nobody judged an answer, and there was nothing to search with")
    figure = Figure(figsize=(4.8 * len(panels), 3.7), dpi=150, layout="constrained")
    places = figure.subplots(1, len(panels), sharex=True, squeeze=False)[0]
    for axes, (title, name) in zip(places, panels, strict=True):
        _panel(axes, title, _series(curves.train, name), _series(curves.evaluation, name), curves.spacing)
    if curves.train and curves.evaluation:
        width = min(SMOOTHING_STEPS, len(curves.steps))
        mean = f", mean of {width} steps" if width > 1 else ""
        figure.supxlabel(f"line: training{mean}    ring: evaluation, 95 % interval", fontsize=8, color=_GREY)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out)
    return out


def smoothed(series: Mapping[int, Share], spacing: int = 1, width: int = SMOOTHING_STEPS) -> dict[int, float]:
    """Centred moving average by step, every trajectory weighing the same; at the ends over what there is.

    NaN stands between two steps that are further apart than the average is wide: a line drawn through it is broken.

    Args:
        spacing: Steps from one batch of rollouts to the next.
        width: Of the window, in batches.
    """
    reach, line, before = width // 2 * spacing, {}, None
    for step in series:
        if before is not None and step - before > width * spacing:
            line[before + 1] = math.nan
        window = [share for other, share in series.items() if abs(other - step) <= reach]
        line[step] = sum(share.hits for share in window) / sum(share.n for share in window)
        before = step
    return line


def _series(curves: Mapping[str, GroupCurve], name: str) -> dict[str, dict[int, Share]]:
    shares = {group: dict(sorted(getattr(curve, name).items())) for group, curve in curves.items()}
    return {group: series for group, series in shares.items() if series}


def _panel(
    axes: Axes,
    title: str,
    train: Mapping[str, dict[int, Share]],
    evaluation: Mapping[str, dict[int, Share]],
    spacing: int,
) -> None:
    colours = _colours([*train, *evaluation])
    ends = {group: _draw_training(axes, series, spacing, colours[group]) for group, series in train.items()}
    # The label's value is the evaluation's where there is one: it is what a reader will quote.
    for group, series in evaluation.items():
        ends[group] = _draw_evaluation(axes, series, colours[group])
    _frame(axes, title)
    _label_ends(axes, ends, colours)


def _draw_training(axes: Axes, series: Mapping[int, Share], spacing: int, colour: str) -> float:
    steps, means = list(series), [share.mean for share in series.values()]
    axes.plot(steps, means, ".", color=colour, alpha=0.25, markersize=4, markeredgewidth=0, clip_on=False)
    line = smoothed(series, spacing)
    axes.plot(list(line), list(line.values()), color=colour, linewidth=2, solid_capstyle="round", clip_on=False)
    return line[steps[-1]]


def _draw_evaluation(axes: Axes, series: Mapping[int, Share], colour: str) -> float:
    steps, means = list(series), [share.mean for share in series.values()]
    for step, share in series.items():
        axes.plot([step, step], wilson_interval(share.mean, share.n), color=colour, linewidth=1.2, clip_on=False)
    axes.plot(
        steps, means, "o", color=colour, markerfacecolor="white", markersize=6, markeredgewidth=1.6, clip_on=False,
        zorder=5,
    )  # fmt: skip
    return means[-1]


def _frame(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=_INK, pad=10)
    axes.set_ylim(0, 1)
    axes.set_xlabel("step", fontsize=9, color=_INK)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.tick_params(length=0, labelsize=9, labelcolor=_GREY)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#BBBBBB")


def _label_ends(axes: Axes, ends: Mapping[str, float], colours: Mapping[str, str]) -> None:
    """Write each group's name and last value beside its curve, apart from one another."""
    ascending = sorted(ends.items(), key=lambda end: end[1])
    heights = spread([value for _, value in ascending], _LABEL_GAP)
    for (group, value), height in zip(ascending, heights, strict=True):
        axes.annotate(
            f"{group.replace('_', '-')} {value:.0%}", (1, height), xycoords="axes fraction", xytext=(8, 0),
            textcoords="offset points", va="center", fontsize=9, color=colours[group], annotation_clip=False,
        )  # fmt: skip


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending heights apart to at least `gap`, keeping the middle of each crowd where it was."""
    crowds: list[list[float]] = []
    for height in heights:
        crowds.append([height])
        while len(crowds) > 1 and _placed(crowds[-1], gap)[0] < _placed(crowds[-2], gap)[-1] + gap:
            crowd = crowds.pop()
            crowds[-1] += crowd
    return [height for crowd in crowds for height in _placed(crowd, gap)]


def _placed(crowd: Sequence[float], gap: float) -> list[float]:
    first = sum(crowd) / len(crowd) - gap * (len(crowd) - 1) / 2
    return [first + gap * index for index in range(len(crowd))]


def _colours(groups: Sequence[str]) -> dict[str, str]:
    """Fixed colours for the groups we know, further ones in turn for others."""
    others = [group for group in dict.fromkeys(groups) if group not in _COLOURS]
    return _COLOURS | dict(zip(others, cycle(_MORE_COLOURS), strict=False))
