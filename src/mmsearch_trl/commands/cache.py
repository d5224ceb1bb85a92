"""`mmsearch cache`: inspect cached search results, and fill the cache before a run."""

import argparse
from pathlib import Path

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.recipe.command_line import add_config, recipe_of


def add_cache(cache: argparse.ArgumentParser) -> None:
    """Give the subcommand its actions."""
    actions = cache.add_subparsers(title="actions", metavar="stats|verify|export|import|prefetch", required=True)
    stats = actions.add_parser("stats", help="what a file holds")
    verify = actions.add_parser("verify", help="read every answer; exit status 1 where one is damaged")
    verify.add_argument("--drop", action="store_true", help="remove the damaged ones")
    export = actions.add_parser("export", help="write all answers into one new file, and tell its SHA-256")
    add = actions.add_parser("import", help="add the answers of other files")
    text = "look up every image of a recipe, or texts: --config RECIPE [--queries FILE|questions] [--key value ...]"
    prefetch = actions.add_parser("prefetch", help=text, description=text, allow_abbrev=False)
    add_config(prefetch)
    prefetch.add_argument("--queries", metavar="FILE", help="texts to search for; `questions`: those of the data")
    prefetch.set_defaults(action=_prefetch)
    for action, run in ((stats, _stats), (verify, _verify), (export, _export), (add, _import)):
        action.add_argument("file", type=Path, metavar="FILE", help="a `search.cache`")
        action.set_defaults(action=run)
    export.add_argument("out", type=Path, metavar="OUT", help="the new file")
    add.add_argument("others", type=Path, metavar="OTHER", nargs="+", help="files whose answers are added")


def _stats(options: argparse.Namespace) -> None:
    from rich.console import Console

    from mmsearch_trl.commands.cache_upkeep import stats

    Console(emoji=False).print(stats(options.file))


def _verify(options: argparse.Namespace) -> None:
    from mmsearch_trl.commands.cache_upkeep import verify

    damaged = verify(options.file, drop=options.drop)
    if damaged and not options.drop:
        raise UserError(f"{len(damaged)} answers of {options.file} are damaged: remove them with --drop")
    print(
        f"{options.file}: {len(damaged)} damaged answers were removed" if damaged else f"{options.file}: all is well"
    )


def _export(options: argparse.Namespace) -> None:
    from mmsearch_trl.commands.cache_upkeep import export

    print(f"{options.out}: sha256 {export(options.file, options.out)}")


def _import(options: argparse.Namespace) -> None:
    from mmsearch_trl.commands.cache_upkeep import add

    print(f"{options.file}: {add(options.file, options.others)} answers added")


def _prefetch(options: argparse.Namespace) -> None:
    from mmsearch_trl.commands.prefetch import prefetch
    from mmsearch_trl.recipe.written import read_written
    from mmsearch_trl.search.calls.totals import summary_lines

    outcomes, totals = prefetch(read_written(*recipe_of(options, options.rest)), options.queries)
    print(", ".join(f"{count} {name}" for name, count in sorted(outcomes.items())) or "nothing to look up was found")
    for line in summary_lines(totals):
        print(line)
