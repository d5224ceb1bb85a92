"""`mmsearch search`: one search on any backend, with its images in the terminal.

The backend is that of a recipe's `search:` section, of keys on the command line, or of both.
"""

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.style import Style
from rich.text import Text

from mmsearch_trl.core.errors import SearchLost, UserError
from mmsearch_trl.core.observation import Hit, ImageHit, ImageQuery, Observation
from mmsearch_trl.recipe.validation import build
from mmsearch_trl.search.config import SearchConfig
from mmsearch_trl.search.factory import build_runtime
from mmsearch_trl.search.media.loading import load_image
from mmsearch_trl.search.runtime import SearchRuntime


_IMAGE_COLUMNS = 28
_TEXT_CHARS = 400


def main(arguments: Sequence[str]) -> None:
    """
    Raises:
        UserError: no backend is named, or one cannot be opened.
        SearchLost: the search failed.
    """
    options = parser().parse_args(arguments)
    if (options.query is None) == (options.image is None):
        raise UserError("give a text to search for, or --image FILE to look an image up")
    runtime = build_runtime(_config(options))
    console = Console()
    try:
        observation = asyncio.run(_search(runtime, options.query, options.image))
    finally:
        runtime.close()
    if observation.failure is not None:
        raise SearchLost(f"the search failed ({observation.failure.kind.value}): {observation.failure.message}")
    _show(observation, console)


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    command = argparse.ArgumentParser(prog="mmsearch search", description=__doc__, allow_abbrev=False)
    command.add_argument("query", nargs="?", metavar="TEXT")
    command.add_argument("--image", type=Path, metavar="FILE", help="look this image up instead")
    command.add_argument("--config", type=Path, metavar="RECIPE", help="use the `search:` section of this recipe")
    keys = command.add_argument_group("keys", "any key of the section, such as --text_index DIR or --text_ddgs true")
    for field in fields(SearchConfig):
        keys.add_argument(f"--{field.name}", metavar="VALUE", help=field.metadata["help"].replace("%", "%%"))
    return command


def _config(options: argparse.Namespace) -> SearchConfig:
    """The recipe's section, with the keys of the command line over it."""
    section: dict[str, Any] = {}
    if options.config is not None:
        recipe = yaml.safe_load(options.config.read_text(encoding="utf-8"))
        section = dict((recipe or {}).get("search") or {})
    given = {field.name: getattr(options, field.name) for field in fields(SearchConfig)}
    typed = {name: yaml.safe_load(value) for name, value in given.items() if value is not None}
    return build(
        SearchConfig, section | typed, lambda key: "the command line" if key in typed else str(options.config)
    )


async def _search(runtime: SearchRuntime, query: str | None, image: Path | None) -> Observation:
    try:
        if image is not None:
            return await runtime.image_search(ImageQuery(load_image(image)))
        return await runtime.text_search(query or "")
    finally:
        await runtime.disconnect()


def _show(observation: Observation, console: Console) -> None:
    how = "cached result" if observation.cached else f"{observation.tries} tries" if observation.tries > 1 else "asked"
    line = f"{escape(observation.backend)}, {how}, {observation.seconds:.2f} s"
    console.print(f"[dim]{line}[/dim]", highlight=False)
    if not observation.hits:
        console.print("searched, and found nothing")
    for number, hit in enumerate(observation.hits, start=1):
        _show_hit(number, hit, console)


def _show_hit(number: int, hit: Hit, console: Console) -> None:
    score = "" if hit.score is None else f"  [dim]{hit.score:.3g}[/dim]"
    console.print(f"\n[bold]{number}. {escape(hit.title or '(no title)')}[/bold]{score}", highlight=False)
    if hit.url:
        console.print(f"   [blue]{escape(hit.url)}[/blue]", highlight=False)
    if not isinstance(hit, ImageHit):
        more = " ..." if len(hit.text) > _TEXT_CHARS else ""
        console.print(f"   {escape(hit.text[:_TEXT_CHARS])}{more}", highlight=False)
    elif hit.thumbnail is None:
        console.print("   (its image could not be had)")
    else:
        image, in_colour = hit.thumbnail, console.is_terminal and console.color_system in ("truecolor", "256")
        console.print(half_blocks(image) if in_colour else f"   (an image of {image.width} x {image.height} pixels)")


def half_blocks(image: Image.Image, columns: int = _IMAGE_COLUMNS) -> Text:
    """An image in coloured half blocks, two pixels to a character."""
    rows = max(1, round(columns * image.height / image.width / 2))
    small = image.convert("RGB").resize((columns, 2 * rows))
    text = Text()
    for row in range(rows):
        text.append("   ")
        for column in range(columns):
            upper, lower = (small.getpixel((column, 2 * row + half)) for half in (0, 1))
            text.append("\u2580", Style.parse(f"rgb{upper} on rgb{lower}".replace(" (", "(").replace(", ", ",")))
        text.append("\n")
    return text
