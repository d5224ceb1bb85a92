"""`mmsearch search`: one search on any backend, with its pictures in the terminal.

The backend is that of a recipe's `search:` section, of keys on the command line, or of both.
"""

import argparse
import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.style import Style
from rich.text import Text

from mmsearch_trl.config_values import build
from mmsearch_trl.search.config import SearchConfig, build_runtime
from mmsearch_trl.search.image.loading import load_image
from mmsearch_trl.search.runtime import SearchRuntime
from mmsearch_trl.search.types import Hit, ImageHit, ImageQuery, Observation, RawReply
from mmsearch_trl.search.watch import SearchLost


_PICTURE_COLUMNS = 28
_TEXT_CHARS = 400


def main(arguments: Sequence[str]) -> None:
    """
    Raises:
        ValueError: no backend is named, or one cannot be opened.
        SearchLost: the search failed.
    """
    options, rest = _parser().parse_known_args(arguments)
    if (options.query is None) == (options.image is None):
        raise ValueError("give a text to search for, or --image FILE to look a picture up")
    runtime = build_runtime(_config(options.config, rest))
    console = Console()
    try:
        observation = asyncio.run(_search(runtime, options.query, options.image))
    finally:
        runtime.close()
    if observation.failure is not None:
        raise SearchLost(f"the search failed ({observation.failure.kind.value}): {observation.failure.message}")
    _show(observation, console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mmsearch search", description=__doc__, allow_abbrev=False)
    parser.add_argument("query", nargs="?", metavar="TEXT")
    parser.add_argument("--image", type=Path, metavar="FILE", help="look this picture up instead")
    parser.add_argument("--config", type=Path, metavar="RECIPE", help="use the `search:` section of this recipe")
    keys = parser.add_argument_group("keys", "any key of the section, such as --text_index DIR or --text_ddgs true")
    for field in fields(SearchConfig):
        keys.add_argument(f"--{field.name}", metavar="VALUE", help=field.metadata["help"].replace("%", "%%"))
    return parser


def _config(recipe: Path | None, rest: Sequence[str]) -> SearchConfig:
    return build(SearchConfig, {}, lambda key: str(recipe))


async def _search(runtime: SearchRuntime, query: str | None, image: Path | None) -> Observation:
    try:
        if image is not None:
            return await runtime.image_search(ImageQuery(load_image(image)))
        return await runtime.text_search(query or "")
    finally:
        await runtime.disconnect()
