"""`mmsearch tiny`: try a recipe on a CPU, in miniature, before a GPU is rented."""

import argparse
from pathlib import Path

from mmsearch_trl.core.versions import check_versions
from mmsearch_trl.recipe.shipped import find_recipe


def add_tiny(tiny: argparse.ArgumentParser) -> None:
    """Declare the options."""
    tiny.add_argument("recipe", metavar="RECIPE", help="a recipe's file, or the name of a shipped one")
    tiny.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for model, data and recipe")
    tiny.set_defaults(action=_tiny)


def _tiny(options: argparse.Namespace) -> None:
    recipe = find_recipe(options.recipe)
    check_versions()
    from mmsearch_trl.world.tiny_recipe import write_tiny_recipe

    command, file = write_tiny_recipe(recipe, options.out)
    print(f"to run it: mmsearch {command} --config {file}")
