"""`mmsearch train`, `sft` and `eval`: carry out a recipe, in as many processes as there are GPUs."""

import argparse
from functools import partial
from importlib import import_module
from typing import Literal

from mmsearch_trl.commands.launch import add_launch, launch
from mmsearch_trl.recipe.command_line import add_config, recipe_of


def add_train(train: argparse.ArgumentParser) -> None:
    """Declare the options."""
    _add(train, "train", "grpo")


def add_sft(sft: argparse.ArgumentParser) -> None:
    """Declare the options."""
    _add(sft, "sft", "sft")


def add_eval(evaluate: argparse.ArgumentParser) -> None:
    """Declare the options."""
    _add(evaluate, "evaluate", "grpo")


def _add(command: argparse.ArgumentParser, module: str, kind: Literal["grpo", "sft"]) -> None:
    add_config(command)
    add_launch(command)
    command.set_defaults(action=partial(_run, f"mmsearch_trl.{module}", kind))


def _run(module: str, kind: Literal["grpo", "sft"], options: argparse.Namespace) -> None:
    from mmsearch_trl.recipe.written import read_written

    recipe, keys = recipe_of(options, options.rest)
    read_written(recipe, keys, kind=kind)  # what can be told without TRL, whose import takes long, is told now
    if not launch(module, options, ["--config", str(recipe), *options.rest]):
        import_module(module).main(recipe, keys)
