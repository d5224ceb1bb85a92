"""Parsers of the `mmsearch` command: every option is told with its default, and none may be abbreviated."""

import argparse
from typing import Any


class Help(argparse.HelpFormatter):
    """Puts an option's default behind its help, where there is one and the help does not tell it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        words = action.help or ""
        untold = action.default is None or action.default is argparse.SUPPRESS or action.nargs == 0
        if untold or not action.option_strings or "default" in words:  # `%(default)s` as well
            return words
        return f"{words} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` of a command; those of its own commands are such, too."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": Help, "allow_abbrev": False, **options})


def with_underscores(words: list[str]) -> list[str]:
    """`--top-k 3` as `--top_k 3`: names are spelled in both ways, as everywhere in Python's world."""
    spelled = []
    for word in words:
        name, equals, value = word.partition("=")
        spelled.append(name.replace("-", "_").replace("__", "--", 1) + equals + value if _is_name(name) else word)
    return spelled


def _is_name(word: str) -> bool:
    return word.startswith("--") and len(word) > 2 and " " not in word
