"""`mmsearch recipes`: list, show and copy the recipes that come with the package."""

import argparse
import shutil
from pathlib import Path

from mmsearch_trl.core.boundaries import writing
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.recipe.shipped import find_recipe, recipe_summary, shipped_recipes


def add_recipes(recipes: argparse.ArgumentParser) -> None:
    """Give the subcommand its actions; without one it lists."""
    actions = recipes.add_subparsers(title="actions", metavar="list|show|copy")
    actions.add_parser("list", help="names, and what each is for")
    show = actions.add_parser("show", help="print a recipe; those that it extends come first")
    copy = actions.add_parser("copy", help="copy a recipe, to change it, with those that it extends")
    for action in (show, copy):
        action.add_argument("name", metavar="NAME", help="such as world/grpo")
    copy.add_argument("folder", type=Path, metavar="FOLDER", help="where to; it is made if need be")
    recipes.set_defaults(action=_list)
    show.set_defaults(action=_show)
    copy.set_defaults(action=_copy)


def _list(options: argparse.Namespace) -> None:
    recipes = shipped_recipes()
    width = max(map(len, recipes))
    for name, file in recipes.items():
        print(f"{name:<{width}}  {recipe_summary(file)}")


def _show(options: argparse.Namespace) -> None:
    for file in _chain(options.name):
        print(f"# --- {file.name}\n{file.read_text(encoding='utf-8')}")


def _copy(options: argparse.Namespace) -> None:
    files = _chain(options.name)
    for target in (options.folder / file.name for file in files):
        if target.exists():
            raise UserError(f"{target} exists: choose another folder, or delete it")
    with writing(options.folder):
        options.folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            print(shutil.copyfile(file, options.folder / file.name))


def _chain(name: str) -> list[Path]:
    """A recipe's file behind those that it extends, which are shipped and lie beside it."""
    from mmsearch_trl.recipe.layers import recipe_chain

    return [path for path, _ in reversed(recipe_chain(find_recipe(name)))]
