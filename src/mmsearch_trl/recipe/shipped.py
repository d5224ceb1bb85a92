"""Recipes and accelerate configurations that come with the package, by name."""

from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path

from mmsearch_trl.core.errors import UserError


_PACKAGE = Path(__file__).parents[1]
_RECIPES = _PACKAGE / "recipes"
_ACCELERATE = _PACKAGE / "accelerate_configs"


def shipped_recipes() -> dict[str, Path]:
    """Files by name, such as `mmsearch_r1/qwen2.5-vl-3b-lora`."""
    files = sorted(_RECIPES.rglob("*.yaml"))
    return {file.relative_to(_RECIPES).with_suffix("").as_posix(): file for file in files}


def find_recipe(given: str | Path) -> Path:
    """A recipe's file, given by its path or by the name of one that is shipped.

    `recipes/NAME.yaml`, the place in a clone of the project, is a name as well.

    Raises:
        UserError: there is neither such a file nor such a name.
    """
    if Path(given).is_file():
        return Path(given)
    shipped, name = shipped_recipes(), str(given).removeprefix("recipes/").removesuffix(".yaml")
    if name in shipped:
        return shipped[name]
    near = get_close_matches(name, shipped, n=1)
    hint = f"did you mean {near[0]}?" if near else "`mmsearch recipes` lists those that are shipped"
    raise UserError(f"recipe not found: {given}: there is no such file, and none is shipped under this name; {hint}")


def recipe_summary(file: Path) -> str:
    """The first sentence of the comment that a shipped recipe begins with."""
    lines = takewhile(lambda line: line.startswith("# "), file.read_text(encoding="utf-8").splitlines())
    return " ".join(line.removeprefix("# ") for line in lines).partition(". ")[0].rstrip(".")


def find_accelerate_config(given: str) -> Path:
    """A configuration of accelerate, given by its path or by the name of one that is shipped, such as `zero2`.

    Raises:
        UserError: there is neither.
    """
    if Path(given).is_file():
        return Path(given)
    shipped = {file.stem: file for file in sorted(_ACCELERATE.glob("*.yaml"))}
    name = given.removeprefix("accelerate_configs/").removesuffix(".yaml")
    if name not in shipped:
        raise UserError(f"accelerate configuration not found: {given}; shipped are {', '.join(shipped)}")
    return shipped[name]
