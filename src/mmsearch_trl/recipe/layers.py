"""What a recipe says, layer on layer: the recipe that it extends, its own file, the command line.

A later layer changes what it names. Mappings are merged key by key, lists and plain values are replaced, and so is a
section whose `backend` becomes another: no key of the old one means anything to it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mmsearch_trl.core.boundaries import reading
from mmsearch_trl.core.errors import UserError


EXTENDS = "extends"
"""Names the file that a recipe changes, relative to the recipe's own folder."""


class Layers:
    """The merged values of all layers added so far."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._places: dict[str, str] = {}
        """Where the value under a dotted key was written, and a mapping first."""

    def add_file(self, path: Path) -> None:
        """Add a recipe's file, and before it those that it extends.

        Raises:
            UserError: a file is missing or is no mapping, or files extend each other in a circle.
        """
        chain: list[tuple[Path, dict[str, Any]]] = []
        while True:
            values = _read(path)
            chain.append((path, values))
            base = values.pop(EXTENDS, None)
            if base is None:
                break
            if not isinstance(base, str):
                raise UserError(f"{path}: `{EXTENDS}` names one other recipe, got {base!r}")
            # Not resolved: a message names the file as the user would.
            extended = path.parent / base
            if not extended.is_file():
                raise UserError(f"{path}: {EXTENDS}: recipe not found: {extended}")
            if extended.resolve() in [file.resolve() for file, _ in chain]:
                circle = " -> ".join(str(file) for file in [*(file for file, _ in chain), extended])
                raise UserError(f"{path}: {EXTENDS}: recipes extend each other in a circle: {circle}")
            path = extended
        for file, values in reversed(chain):
            self.add(str(file), values)

    def add_keys(self, overrides: Mapping[str, Any], section: str = "") -> None:
        """Add values of the command line, by dotted key; all of them are keys of `section`, where one is given."""
        # A change of backend first: it clears the section of the other backend's keys, not of those given beside it.
        for key in sorted(overrides, key=lambda key: key.split(".")[-1] != "backend"):
            values = overrides[key]
            for part in reversed(f"{section}{key}".split(".")):
                values = {part: values}
            self.add(f"command line (--{key})", values)

    def add(self, place: str, values: Mapping[str, Any]) -> None:
        """Add what is written at `place`."""
        self._merge(self.values, values, place, "")

    def place(self, key: str) -> str | None:
        """Where the value under a dotted key was written, or the section in which it is missing; None for nowhere."""
        while key and key not in self._places:
            key = key.rpartition(".")[0]
        return self._places.get(key)

    def _merge(self, values: dict[str, Any], over: Mapping[str, Any], place: str, prefix: str) -> None:
        for key, value in over.items():
            old, dotted = values.get(key), f"{prefix}{key}"
            if not isinstance(value, Mapping):
                self._forget(dotted)
                values[key], self._places[dotted] = value, place
                continue
            if not isinstance(old, dict) or value.get("backend", old.get("backend")) != old.get("backend"):
                self._forget(dotted)
                values[key], self._places[dotted] = {}, place
            self._merge(values[key], value, place, f"{dotted}.")

    def _forget(self, dotted: str) -> None:
        for key in [key for key in self._places if key.startswith(f"{dotted}.")]:
            del self._places[key]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"recipe not found: {path}")
    with reading(path):
        content = path.read_bytes()
    try:
        values = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path}: a recipe is a mapping of keys to values, one `key: value` per line")
    return values
