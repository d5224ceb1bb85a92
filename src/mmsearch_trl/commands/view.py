"""`mmsearch view` and `mmsearch plot`: a run's trajectories as a page, its learning as a picture."""

import argparse
from pathlib import Path


def add_view(view: argparse.ArgumentParser) -> None:
    """Declare the options."""
    view.add_argument("run", type=Path, metavar="RUN", help="folder that holds traces/")
    view.add_argument("--out", type=Path, metavar="FILE", help="the page; default: trajectories.html of RUN")
    view.set_defaults(action=_view)


def add_plot(plot: argparse.ArgumentParser) -> None:
    """Declare the options."""
    plot.add_argument("run", type=Path, metavar="RUN", help="folder that holds traces/")
    plot.add_argument("--out", type=Path, metavar="FILE", help="the picture; default: learning.png of RUN")
    plot.set_defaults(action=_plot)


def _view(options: argparse.Namespace) -> None:
    from mmsearch_trl.traces.view import write_page

    print(write_page(options.run, options.out))


def _plot(options: argparse.Namespace) -> None:
    from mmsearch_trl.traces.files import read_traces
    from mmsearch_trl.traces.plot import learning_curves, plot_learning

    print(plot_learning(learning_curves(read_traces(options.run)), options.out or options.run / "learning.png"))
