"""The command line of a recipe: `--config RECIPE`, and behind it any key of the recipe with its new value.

`argparse` reads it, with the options of the command; the words that it does not know are the recipe's keys. It cannot
be told of them: there are 400, and most are declared by TRL, which takes seconds to import.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.protocol.yaml_text import read_yaml
from mmsearch_trl.recipe.shipped import find_recipe


def add_config(
    command: argparse.ArgumentParser, what: str = "the recipe, a YAML file or the name of a shipped one"
) -> None:
    """Declare `--config`, and that keys may follow."""
    command.add_argument("--config", type=Path, metavar="RECIPE", help=f"{what}; any key of it may follow")
    command.set_defaults(takes_rest=True)


def recipe_arguments(arguments: Sequence[str] | None = None) -> tuple[Path, dict[str, Any]]:
    """The recipe of a script's command line, and the values that replace its own, by dotted key.

    Raises:
        UserError: there is no `--config`, no such recipe, or a value is no YAML.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_config(parser)
    return recipe_of(*parser.parse_known_args(arguments))


def recipe_of(options: argparse.Namespace, rest: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """Likewise of the options that a parser with `add_config` read, and the words that it left."""
    overrides = keys_of(rest)
    if options.config is None:
        raise UserError("command line: --config FILE is missing, the recipe to run")
    find_recipe(options.config)
    return options.config, overrides


def keys_of(words: Sequence[str]) -> dict[str, Any]:
    """`--key value --section.key=value --flag` as values by dotted key.

    Values are read as YAML. Several values after one key are a list, none is `true`.

    Raises:
        UserError: a value is no YAML, or stands before any key.
    """
    texts: dict[str, list[str]] = {}
    key = None
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            key = name.replace("-", "_")
            texts[key] = [value] if equals else []
        elif key is None:
            raise UserError(f"command line: unexpected {word!r}; write --config FILE and then --name value")
        else:
            texts[key].append(word)
    return {key: _value(key, given) for key, given in texts.items()}


def _value(key: str, texts: Sequence[str]) -> Any:
    values = [read_yaml(text, f"command line (--{key})") for text in texts]
    if not values:
        return True
    return values[0] if len(values) == 1 else values
