import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from mmsearch_trl.traces import plot
from mmsearch_trl.traces.files import read_traces
from mmsearch_trl.traces.plot import Share, learning_curves, plot_learning, smoothed, spread


def test_shares_are_counted_by_step_group_and_split(run_dir):
    curves = learning_curves(read_traces(run_dir))
    known, held_out = curves.train["known"], curves.train["held_out"]
    assert {step: (share.hits, share.n) for step, share in known.right.items()} == {0: (1, 2), 1: (1, 1)}
    assert {step: (share.hits, share.n) for step, share in known.searched.items()} == {0: (1, 2), 1: (0, 1)}
    assert held_out.searched[1].mean == 1.0
    assert list(curves.evaluation["held_out"].right) == [0, 2]


def test_the_plot_is_a_picture_with_something_on_it(run_dir, tmp_path):
    out = plot_learning(learning_curves(read_traces(run_dir)), tmp_path / "plots" / "learning.png")
    picture = Image.open(out).convert("RGB")
    assert picture.width > 2 * picture.height
    colours = {colour for _, colour in picture.getcolors(1 << 20) or []}
    assert {(0x00, 0x72, 0xB2), (0x00, 0x9E, 0x73)} <= colours


def test_an_evaluation_alone_can_be_plotted(run_dir, tmp_path):
    records = [record for record in read_traces(run_dir) if record.split == "eval"]
    assert plot_learning(learning_curves(records), tmp_path / "eval.svg").read_text().startswith("<?xml")


def test_no_trajectory_is_an_error():
    with pytest.raises(ValueError, match="no trajectory to plot"):
        learning_curves([])


def test_smoothing_weighs_every_trajectory_the_same():
    assert smoothed({0: Share(0, 1), 1: Share(9, 9)}, width=3) == {0: 0.9, 1: 0.9}


def test_smoothing_reaches_over_steps_and_not_over_what_was_measured():
    assert smoothed({0: Share(0, 1), 1: Share(1, 1), 5: Share(1, 1)}, width=3) == pytest.approx(
        {0: 0.5, 1: 0.5, 2: math.nan, 5: 1.0}, nan_ok=True
    )
    spaced = smoothed({0: Share(0, 1), 4: Share(1, 1), 8: Share(1, 1)}, 4, width=3)
    assert spaced == pytest.approx({0: 1 / 2, 4: 2 / 3, 8: 1.0})


def drawn(records, folder, monkeypatch):
    """The figure that `plot_learning` draws."""
    figures = []
    monkeypatch.setattr(plot, "Figure", lambda **keys: figures.append(Figure(**keys)) or figures[-1])
    plot_learning(learning_curves(records), folder / "plot.svg")
    return figures[0]


def lines(figure):
    """Points of each line of two points or more."""
    data = [line.get_xydata() for axes in figure.axes for line in axes.lines if line.get_linestyle() != "None"]
    return [points for points in data if len({x for x, _ in points}) > 1]


def test_no_line_is_drawn_where_nothing_was_measured(run_dir, tmp_path, monkeypatch):
    record = next(iter(read_traces(run_dir)))
    steps = [*range(10), *range(60, 70)]
    train = [replace(record, split="train", step=step) for step in steps]
    evaluations = [replace(record, split="eval", step=step, group="held_out") for step in (0, 35, 69)]
    figure = drawn([*train, *evaluations], tmp_path, monkeypatch)
    assert len(lines(figure)) == 2  # a curve for each panel, none through evaluations
    for points in lines(figure):
        assert any(math.isnan(y) for x, y in points if 9 < x < 60)
    assert figure.get_supxlabel() == "line: training, mean of 7 steps    ring: evaluation, 95 % interval"


@pytest.mark.parametrize(("steps", "said"), [([0, 1, 2, 3], "training, mean of 4 steps  "), ([5], "training  ")])
def test_the_plot_says_over_how_many_steps_it_takes_the_mean(run_dir, tmp_path, monkeypatch, steps, said):
    record = next(iter(read_traces(run_dir)))
    records = [replace(record, split=split, step=step) for step in steps for split in ("train", "eval")]
    assert said in drawn(records, tmp_path, monkeypatch).get_supxlabel()


def test_a_batch_of_rollouts_that_serves_several_steps_breaks_no_line(run_dir, tmp_path, monkeypatch):
    record = next(iter(read_traces(run_dir)))
    figure = drawn([replace(record, split="train", step=step) for step in range(0, 160, 16)], tmp_path, monkeypatch)
    assert not any(math.isnan(y) for points in lines(figure) for _, y in points)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_labels_keep_their_order_and_distance(heights):
    placed = spread(sorted(heights), 0.05)
    assert len(placed) == len(heights)
    assert all(upper - lower >= 0.05 - 1e-9 for lower, upper in pairwise(placed))


def test_labels_that_do_not_touch_stay_where_they_are():
    assert spread([0.1, 0.5, 0.9], 0.05) == [0.1, 0.5, 0.9]
