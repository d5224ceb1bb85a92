from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

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
    assert smoothed([Share(0, 1), Share(9, 9)], width=3) == [0.9, 0.9]


@given(st.lists(st.floats(0, 1), max_size=8))
def test_labels_keep_their_order_and_distance(heights):
    placed = spread(sorted(heights), 0.05)
    assert len(placed) == len(heights)
    assert all(upper - lower >= 0.05 - 1e-9 for lower, upper in pairwise(placed))


def test_labels_that_do_not_touch_stay_where_they_are():
    assert spread([0.1, 0.5, 0.9], 0.05) == [0.1, 0.5, 0.9]
