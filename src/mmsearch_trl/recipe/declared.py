"""The fields of a dataclass as its source declares them, without importing the module that it stands in.

TRL and transformers declare most keys of a recipe and take ten seconds to import; who mistyped a key need not wait.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal


_NAMES = {each.__name__: each for each in (bool, int, float, str, dict, list, tuple)}
_KNOWN: Mapping[str, Any] = {**_NAMES, "Any": Any, "Literal": Literal, "None": None, "__builtins__": {}}


@cache
def declared_fields(*classes: str) -> dict[str, Any]:
    """Types of the fields that may be given, by name.

    Args:
        classes: Each as `package.module:Name`, bases first. A type that another module defines is `Any`.
    """
    return {name: hint for place in classes for name, hint in _fields(*place.split(":"))}


def _fields(module: str, name: str) -> Iterator[tuple[str, Any]]:
    body = next(node.body for node in _tree(module).body if isinstance(node, ast.ClassDef) and node.name == name)
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not _is_internal(node.value):
            yield node.target.id, _hint(node.annotation)


def _is_internal(value: ast.expr | None) -> bool:
    """Whether the field is no argument: `field(init=False)`."""
    keywords = value.keywords if isinstance(value, ast.Call) else ()
    return any(word.arg == "init" and ast.unparse(word.value) == "False" for word in keywords)


def _hint(annotation: ast.expr) -> Any:
    try:
        return eval(ast.unparse(annotation), dict(_KNOWN))
    except NameError:
        return Any


def _tree(module: str) -> ast.Module:
    package, *below = module.split(".")
    spec = find_spec(package)  # of a package alone: of a module in it, it would import the package
    assert spec is not None and spec.submodule_search_locations
    file = Path(spec.submodule_search_locations[0], *below).with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))
