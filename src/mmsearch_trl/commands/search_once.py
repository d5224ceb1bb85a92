"""`mmsearch search`: one search on any backend, with its images in the terminal.

The backend is that of a recipe's `search:` section, of keys on the command line, or of both.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.style import Style
from rich.text import Text

from mmsearch_trl.core.errors import SearchLost, UserError
from mmsearch_trl.core.observation import Hit, ImageHit, ImageQuery, Observation
from mmsearch_trl.core.text import printable
from mmsearch_trl.recipe.layers import Layers
from mmsearch_trl.recipe.validation import build
from mmsearch_trl.rollout.background_loop import run_to_end
from mmsearch_trl.search.config import SearchConfig
from mmsearch_trl.search.factory import build_runtime
from mmsearch_trl.search.media.loading import load_image
from mmsearch_trl.search.runtime import SearchRuntime


_IMAGE_COLUMNS = 28
_TEXT_CHARS = 400


def search_config(config: Path | None, keys: Mapping[str, Any]) -> SearchConfig:
    """The `search:` section of a recipe, with keys of the command line over it: `search.text.top_k`, or `text.top_k`.

    Raises:
        UserError: a key is unknown, or a value is wrong.
    """
    layers = Layers()
    if config is not None:
        layers.add_file(config)
    layers.add_keys({key.removeprefix("search."): value for key, value in keys.items()}, "search.")
    section = layers.values.get("search") or {}
    return build(SearchConfig, section, lambda key: layers.place(key) or str(config), "search.")


def search(config: SearchConfig, what: str | Path) -> None:
    """Search for a text, or for what shows the image of a file, and print what was found.

    Raises:
        UserError: a backend cannot be opened, or the file cannot be read.
        SearchLost: the search failed.
    """
    runtime = build_runtime(config)
    try:
        observation = run_to_end(_search(runtime, what))
    finally:
        runtime.close()
    if observation.failure is not None:
        raise SearchLost(f"the search failed ({observation.failure.kind.value}): {observation.failure.message}")
    show_observation(observation, Console(emoji=False))


def image_file(file: Path) -> Image.Image:
    """The image that a person named.

    Raises:
        UserError: it cannot be opened; names the file.
    """
    try:
        return load_image(file)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


async def _search(runtime: SearchRuntime, what: str | Path) -> Observation:
    try:
        if isinstance(what, Path):
            return await runtime.image_search(ImageQuery(image_file(what)))
        return await runtime.text_search(what)
    finally:
        await runtime.disconnect()


def show_observation(observation: Observation, console: Console) -> None:
    """Print what a tool found, or why it found nothing."""
    if observation.failure is not None:
        failure = observation.failure
        console.print(f"failed ({failure.kind.value}): {printable(failure.message)}", style="red", markup=False)
        return
    how = "cached result" if observation.cached else f"{observation.tries} tries" if observation.tries > 1 else "asked"
    line = f"{escape(observation.backend)}, {how}, {observation.seconds:.2f} s"
    console.print(f"[dim]{line}[/dim]", highlight=False)
    if not observation.hits:
        console.print("searched, and found nothing")
    for number, hit in enumerate(observation.hits, start=1):
        _show_hit(number, hit, console)


def _show_hit(number: int, hit: Hit, console: Console) -> None:
    score = "" if hit.score is None else f"  [dim]{hit.score:.3g}[/dim]"
    console.print(f"\n[bold]{number}. {escape(printable(hit.title) or '(no title)')}[/bold]{score}", highlight=False)
    if hit.url:
        console.print(f"   [blue]{escape(printable(hit.url))}[/blue]", highlight=False)
    if not isinstance(hit, ImageHit):
        more = " ..." if len(hit.text) > _TEXT_CHARS else ""
        console.print(f"   {escape(printable(hit.text[:_TEXT_CHARS]))}{more}", highlight=False)
    elif hit.thumbnail is None:
        console.print("   (its image could not be had)")
    else:
        image, in_colour = hit.thumbnail, console.is_terminal and console.color_system in ("truecolor", "256")
        shown = half_blocks(image) if in_colour else f"   (an image of {image.width} x {image.height} pixels)"
        console.print(shown, highlight=False)


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
