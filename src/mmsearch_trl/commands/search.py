"""`mmsearch search`: one search on any backend."""

import argparse
from pathlib import Path

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.versions import check_versions
from mmsearch_trl.recipe.command_line import add_config, keys_of


def add_search(search: argparse.ArgumentParser) -> None:
    """Declare the options."""
    search.usage = "mmsearch search (TEXT | --image FILE) [--config RECIPE] [--text.backend bm25 --text.path DIR ...]"
    search.add_argument("--image", type=Path, metavar="FILE", help="look this image up instead of searching TEXT")
    add_config(search, "take the `search:` section of this recipe")
    search.set_defaults(action=_search)


def _search(options: argparse.Namespace) -> None:
    check_versions()
    from mmsearch_trl.commands.search_once import search, search_config

    # TEXT is no option of the parser: of two words behind a key, `argparse` could not tell which is the text.
    first_key = next((place for place, word in enumerate(options.rest) if word.startswith("--")), len(options.rest))
    texts, keys = options.rest[:first_key], keys_of(options.rest[first_key:])
    if len(texts) + (options.image is not None) != 1:
        raise UserError("give a text to search for, or --image FILE to look an image up; keys come behind it")
    search(search_config(options.config, keys), texts[0] if texts else options.image)
