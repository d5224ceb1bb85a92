"""`mmsearch train`, `sft` and `eval`: carry out a recipe."""

import argparse
from pathlib import Path
from typing import Any

from mmsearch_trl.recipe.command_line import add_config, recipe_of


def add_train(train: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_config(train)
    train.set_defaults(action=_train)


def add_sft(sft: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_config(sft)
    sft.set_defaults(action=_sft)


def add_eval(evaluate: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_config(evaluate)
    evaluate.set_defaults(action=_eval)


def _train(options: argparse.Namespace) -> None:
    recipe = _checked(options, "grpo")
    from mmsearch_trl.train import main

    main(*recipe)


def _sft(options: argparse.Namespace) -> None:
    recipe = _checked(options, "sft")
    from mmsearch_trl.sft import main

    main(*recipe)


def _eval(options: argparse.Namespace) -> None:
    recipe = _checked(options, "grpo")
    from mmsearch_trl.evaluate import main

    main(*recipe)


def _checked(options: argparse.Namespace, kind: Any) -> tuple[Path, dict[str, Any]]:
    """The recipe and what replaces its values; what can be told without TRL, whose import takes long, is told now."""
    from mmsearch_trl.recipe.written import read_written

    recipe, overrides = recipe_of(options, options.rest)
    read_written(recipe, overrides, kind=kind)
    return recipe, overrides
