"""`mmsearch train`, `sft` and `eval`: carry out a recipe."""

import argparse

from mmsearch_trl.core.versions import check_versions
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
    check_versions()  # before TRL is touched: a version out of range may not even import
    from mmsearch_trl.train import main

    main(*recipe_of(options, options.rest))


def _sft(options: argparse.Namespace) -> None:
    check_versions()
    from mmsearch_trl.sft import main

    main(*recipe_of(options, options.rest))


def _eval(options: argparse.Namespace) -> None:
    check_versions()
    from mmsearch_trl.evaluate import main

    main(*recipe_of(options, options.rest))
