"""`mmsearch data`: write the data files of a published method, and levels of Sokoban."""

import argparse
from pathlib import Path


FLASHRAG = "RUC-NLPIR/FlashRAG_datasets"
"""The data set on the Hub from which Search-R1 takes its questions."""


def add_data(data: argparse.ArgumentParser) -> None:
    """Give the subcommand its sets."""
    sets = data.add_subparsers(title="data", metavar="search-r1|sokoban", required=True)
    search_r1 = sets.add_parser("search-r1", help="training data of Search-R1 (NQ, HotpotQA) and its seven test sets")
    search_r1.add_argument("out", type=Path, metavar="FOLDER", help="where the files are written")
    search_r1.add_argument(
        "--source", default=FLASHRAG, help="data set on the Hub, or a folder with its files (default: %(default)s)"
    )
    search_r1.set_defaults(action=_search_r1)
    sokoban = sets.add_parser("sokoban", help="levels of Sokoban, each proved solvable, with pictures")
    sokoban.add_argument("out", type=Path, metavar="FOLDER", help="where the file and its pictures are written")
    sokoban.add_argument("--levels", type=int, default=1000, metavar="N", help="how many")
    sokoban.add_argument(
        "--kind", default="small-v0", help="their size: small-v0, small-v1, v0, v1 or large-v0, as in gym_sokoban"
    )
    sokoban.add_argument("--seed", type=int, default=0, help="other levels for another number")
    sokoban.set_defaults(action=_sokoban)


def _search_r1(options: argparse.Namespace) -> None:
    from mmsearch_trl.data.search_r1_sets import write_search_r1_sets

    for name, count in write_search_r1_sets(options.out, options.source).items():
        print(f"{options.out / name}: {count} rows")


def _sokoban(options: argparse.Namespace) -> None:
    from mmsearch_trl.sokoban.data_set import write_levels

    print(f"{write_levels(options.out, options.kind, options.levels, options.seed)}: {options.levels} rows")
