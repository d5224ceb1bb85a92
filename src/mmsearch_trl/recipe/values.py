"""Plain YAML values to typed dataclasses: an unknown key or a value of another type is an error that names the key.

Three conversions are made, because YAML and a command line cannot say otherwise: `1e-6` (which YAML reads as text)
becomes a float, a number becomes a text where a text is wanted, and a single value a list of one.
"""

import difflib
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mmsearch_trl.core.errors import UserError


T = TypeVar("T")
Where = Callable[[str], str]
"""Says where a dotted key was written: a file, or the command line."""


class RecipeError(UserError):
    """A recipe cannot be used; the message names the key, where it was written, and what to do."""


def build(cls: type[T], values: Mapping[str, Any], where: Where, prefix: str = "") -> T:
    """An instance of the dataclass `cls`; `prefix` stands before its keys in messages (`"rollout."`).

    Raises:
        RecipeError: a key is unknown or missing, a value has another type, or the dataclass refuses the values.
    """
    hints = get_type_hints(cls)
    settable = {field.name: field for field in fields(cls) if field.init}  # pyright: ignore[reportArgumentType]
    arguments = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in settable:
            raise unknown_key(key, [f"{prefix}{known}" for known in settable], where)
        arguments[name] = _convert(value, hints[name], key, where)
    for name, field in settable.items():
        if name not in arguments and field.default is MISSING and field.default_factory is MISSING:
            raise RecipeError(f"{where(prefix + name)}: the key `{prefix}{name}` is missing")
    try:
        return cls(**arguments)
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"{where(prefix.rstrip('.'))}: {error}") from error


def unknown_key(key: str, known: list[str], where: Where) -> RecipeError:
    """The error for a key that nobody reads, with the nearest one that is read."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return RecipeError(f"{where(key)}: unknown key `{key}`" + (f"; did you mean `{near[0]}`?" if near else ""))


def _convert(value: Any, hint: Any, key: str, where: Where) -> Any:
    """`value` as `hint` wants it."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and (types.NoneType in members or hint is Any):
        return None
    # Names of an enumeration come first: TRL declares them as `Enum | str`, and any text would pass for the latter.
    for member in sorted(members, key=lambda member: not _is_enum(member)):
        if is_dataclass(member) and isinstance(value, Mapping):
            return build(member, value, where, f"{key}.")  # pyright: ignore[reportArgumentType]
        converted = _as(value, member)
        if converted is not _NO:
            return converted
        if _is_enum(member) and isinstance(value, str):
            break
    raise RecipeError(f"{where(key)}: `{key}` must be {_expected(members)}, got {value!r}{_hint(value, members)}")


_NO = object()


def _as(value: Any, member: Any) -> Any:
    """`value` as one plain type, or `_NO`."""
    origin = get_origin(member) or member
    if member is Any:
        return value
    if origin is Literal:
        return value if any(value is choice or value == choice for choice in get_args(member)) else _NO
    if _is_enum(member):
        return member(value) if value in {choice.value for choice in member} else _NO
    if origin in (list, tuple):
        return _as_sequence(value, origin, get_args(member))
    if origin in (dict, Mapping) or origin is Mapping:
        return dict(value) if isinstance(value, Mapping) else _NO
    return _as_scalar(value, origin)


def _as_scalar(value: Any, kind: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is bool:
        return value if isinstance(value, bool) else _NO
    if kind is int:
        return int(value) if number and float(value).is_integer() else _NO
    if kind is float:
        return float(value) if number else _parsed_float(value)
    if kind is str:
        return str(value) if number or isinstance(value, str) else _NO
    if kind is Path:
        return Path(value) if isinstance(value, str) else _NO
    return _NO


def _as_sequence(value: Any, kind: type, arguments: tuple[Any, ...]) -> Any:
    items = value if isinstance(value, list | tuple) else [value]
    if isinstance(value, Mapping) or value is None:
        return _NO
    converted = [_as(item, arguments[0]) if arguments else item for item in items]
    return _NO if any(item is _NO for item in converted) else kind(converted)


def _parsed_float(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else _NO
    except ValueError:
        return _NO


def _is_enum(member: Any) -> bool:
    return isinstance(member, type) and issubclass(member, Enum)


def _expected(members: tuple[Any, ...]) -> str:
    """The wanted types in the words of a recipe."""
    enums = [member for member in members if _is_enum(member)]
    wanted = enums or [member for member in members if member is not types.NoneType]
    return " or ".join(map(_name, wanted)) + (" or null" if types.NoneType in members else "")


def _name(member: Any) -> str:
    if get_origin(member) is Literal:
        return "one of " + ", ".join(map(repr, get_args(member)))
    if _is_enum(member):
        return "one of " + ", ".join(repr(choice.value) for choice in member)
    if is_dataclass(member):
        return "a mapping"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    origin = get_origin(member) or member
    if origin in (list, tuple):
        return "a list"
    return names.get(origin, "a mapping" if origin in (dict, Mapping) else str(member))


def _hint(value: Any, members: tuple[Any, ...]) -> str:
    wants_text = any(_is_enum(member) or member is str or get_origin(member) is Literal for member in members)
    if isinstance(value, bool) and wants_text:
        return f" (YAML reads a bare yes, no, on, off as true or false: put quotes around it, not {value})"
    return ""
