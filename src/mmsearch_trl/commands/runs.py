"""`mmsearch train`, `sft` and `eval`: carry out a recipe, in as many processes as there are GPUs."""

import argparse
from functools import partial
from importlib import import_module

from mmsearch_trl.commands.check import Job, check_recipe
from mmsearch_trl.commands.launch import add_launch, launch
from mmsearch_trl.recipe.command_line import add_config, recipe_of


def add_train(train: argparse.ArgumentParser) -> None:
    """Declare the options."""
    _add(train, "train")


def add_sft(sft: argparse.ArgumentParser) -> None:
    """Declare the options."""
    _add(sft, "sft")


def add_eval(evaluate: argparse.ArgumentParser) -> None:
    """Declare the options."""
    _add(evaluate, "eval")


def _add(command: argparse.ArgumentParser, job: Job) -> None:
    add_config(command)
    add_launch(command)
    command.add_argument(
        "--dry_run", action="store_true", help="say what would go wrong, as `mmsearch check`, and end"
    )
    command.set_defaults(action=partial(_run, job))


def _run(job: Job, options: argparse.Namespace) -> None:
    from mmsearch_trl.recipe.files import check_files_of
    from mmsearch_trl.recipe.written import read_written

    recipe, keys = recipe_of(options, options.rest)
    if options.dry_run:
        return check_recipe(recipe, keys, job, options.num_processes)
    # What can be told without TRL, whose import takes long, is told now.
    written = read_written(recipe, keys, kind="sft" if job == "sft" else "grpo")
    check_files_of(recipe, written.values, written.data, written.search, evaluation=job == "eval")
    module = "mmsearch_trl.evaluate" if job == "eval" else f"mmsearch_trl.{job}"
    if not launch(module, options, ["--config", str(recipe), *options.rest]):
        import_module(module).main(recipe, keys)
