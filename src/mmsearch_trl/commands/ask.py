"""`mmsearch ask`: ask a trained agent, and watch it search."""

import argparse
from pathlib import Path

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.versions import check_versions
from mmsearch_trl.recipe.command_line import add_config, keys_of


def add_ask(ask: argparse.ArgumentParser) -> None:
    """Declare the options."""
    ask.add_argument("question", metavar="QUESTION", help="what is asked")
    ask.add_argument("--model", required=True, metavar="M", help="folder of a run, or any model or adapter")
    ask.add_argument("--image", type=Path, metavar="FILE", help="the image that the question is about")
    ask.add_argument("--temperature", type=float, default=0.0, help="of sampling; default: %(default)s, greedy")
    ask.add_argument("--seed", type=int, default=0, help="of sampling; default: %(default)s")
    add_config(ask, "prompts, limits and tools; default: the `recipe.yaml` that a run left beside its model")
    ask.set_defaults(action=_ask)


def _ask(options: argparse.Namespace) -> None:
    check_versions()
    keys = keys_of(options.rest)
    config = options.config or Path(options.model) / "recipe.yaml"
    if options.config is None and not config.is_file():
        raise UserError(f"{config} is not there: name a recipe with --config, for its prompts, limits and tools")
    from mmsearch_trl.commands.ask_once import ask

    ask(options, config, keys)
