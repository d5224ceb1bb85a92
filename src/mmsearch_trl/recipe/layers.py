"""What a recipe says, layer on layer: the recipe that it extends, its own file, the command line.

A later layer changes what it names. Mappings are merged key by key, lists and plain values are replaced, and so is a
section whose `backend` becomes another: no key of the old one means anything to it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mmsearch_trl.core.boundaries import reading
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.protocol.yaml_text import read_yaml
from mmsearch_trl.recipe.shipped import find_recipe


_OF_REWARDS = ("search", "rollout", "reward", "num_generations")
"""Keys that a supervised recipe does not have."""
EXTENDS = "extends"
"""Names the recipe that a recipe changes: a file, relative to the recipe's own folder, or one that is shipped."""


class Layers:
    """The merged values of all layers added so far."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._places: dict[str, str] = {}
        """Where the value under a dotted key was written, and a mapping first."""

    def add_file(self, path: Path) -> None:
        """Add a recipe, a file or the name of a shipped one, and before it those that it extends.

        Raises:
            UserError: a recipe is missing or is no mapping, or recipes extend each other in a circle.
        """
        for file, values in reversed(recipe_chain(path)):
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


def kind_of(path: Path, overrides: Mapping[str, Any]) -> Literal["grpo", "sft"]:
    """What a recipe is for, by its keys.

    Raises:
        UserError: as for `Layers.add_file`.
    """
    layers = Layers()
    layers.add_file(path)
    layers.add_keys(overrides)
    return "grpo" if any(key in layers.values for key in _OF_REWARDS) else "sft"


def recipe_chain(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """A recipe's file and what it holds, then the one that it extends, and so on.

    Raises:
        UserError: as for `Layers.add_file`.
    """
    path = find_recipe(path)
    chain: list[tuple[Path, dict[str, Any]]] = []
    while True:
        values = _read(path)
        chain.append((path, values))
        base = values.pop(EXTENDS, None)
        if base is None:
            return chain
        if not isinstance(base, str):
            raise UserError(f"{path}: `{EXTENDS}` names one other recipe, got {base!r}")
        extended = _extended(path, base)
        if extended.resolve() in [file.resolve() for file, _ in chain]:
            circle = " -> ".join(str(file) for file in [*(file for file, _ in chain), extended])
            raise UserError(f"{path}: {EXTENDS}: recipes extend each other in a circle: {circle}")
        path = extended


def _extended(path: Path, base: str) -> Path:
    """The file beside `path`, or a shipped recipe; not resolved, since a message names the file as the user would."""
    beside = path.parent / base
    if beside.is_file():
        return beside
    try:
        return find_recipe(base)
    except UserError as error:
        raise UserError(f"{path}: {EXTENDS}: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    with reading(path):
        content = path.read_bytes()
    values = read_yaml(content, str(path))
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path}: a recipe is a mapping of keys to values, one `key: value` per line")
    return values
