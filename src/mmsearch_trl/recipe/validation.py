"""Values as YAML gives them to typed dataclasses, TRL's included: pydantic converts and checks field by field.

A dataclass is built once, of values that have the types of its fields: those of TRL and transformers look at devices
and set up a distributed backend when they are built. Every error names the key and where it was written.

Pydantic converts less here than by itself, because a recipe whose `bf16: "no"` became false, or whose `seed: true`
became 1, would train something else than it says. Converted is what YAML and a command line cannot say otherwise:
`1e-6` (text to YAML) to a float, 3.0 to a whole number, a number to a text, a single value to a list of one, and the
bare `no` of `eval_strategy: no` (false to YAML) to the word, where that is one of the words to choose from.
"""

import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import partial
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BeforeValidator, ConfigDict, Field, StrictBool, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.nearest import did_you_mean


T = TypeVar("T")
Where = Callable[[str], str]
"""Says where a dotted key was written: a file, or the command line."""

_READ_AS = {True: ("yes", "on"), False: ("no", "off")}
_UNIONS = (Union, types.UnionType)
_WANTED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "string": "a text",
    "path": "a path",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "mapping": "a mapping",
}
"""What a value must be, by the first word of the type of pydantic's error."""


def build(cls: type[T], values: Mapping[str, Any], where: Where, prefix: str = "") -> T:
    """An instance of the dataclass `cls`; `prefix` stands before its keys in messages (`"rollout."`).

    Raises:
        UserError: a key is unknown or missing, a value has another type, or the dataclass refuses the values.
    """
    hints = get_type_hints(cls, include_extras=True)
    settable = {field.name: field for field in fields(cls) if field.init}  # pyright: ignore[reportArgumentType]
    arguments: dict[str, Any] = {}
    # A section that is passed on to a user's own code has one field for all keys that are not its own.
    others = next((name for name, field in settable.items() if field.metadata.get("other_keys")), None)
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name in settable and name != others:
            arguments[name] = convert(value, hints[name], key, where)
        elif others is not None:
            arguments.setdefault(others, {})[name] = value
        else:
            raise unknown_key(key, [f"{prefix}{known}" for known in settable], where)
    for name, field in settable.items():
        if name not in arguments and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{where(prefix + name)}: the key `{prefix}{name}` is missing")
    # TRL and transformers refuse values, or ask for packages, in several types; our dataclasses by UserError alone.
    ours = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
    refusals = UserError if ours else (ValueError, TypeError, ImportError)
    try:
        return cls(**arguments)
    except refusals as error:
        # Messages name their keys; where the first of them that was written stands is where the mistake is.
        words = [word.rstrip(".") for word in re.findall(r"[\w.]+", str(error))]
        key = next((word for word in words if word in {f"{prefix}{name}" for name in values}), prefix.rstrip("."))
        raise UserError(f"{where(key)}: {error}") from error


def unknown_key(key: str, known: Sequence[str], where: Where) -> UserError:
    """The error for a key that nobody reads, with the nearest one that is read."""
    return UserError(f"{where(key)}: unknown key `{key}`{did_you_mean(key, known)}")


def convert(value: Any, hint: Any, key: str, where: Where) -> Any:
    """`value` as `hint` wants it.

    Raises:
        UserError: it is of another type.
    """
    members = get_args(hint) if get_origin(hint) in _UNIONS else (hint,)
    sections = [member for member in members if is_dataclass(member)]
    if sections and isinstance(value, Mapping):
        return build(_section(sections, value, key, where), value, where, f"{key}.")
    if sections and (value is not None or types.NoneType not in members):
        raise UserError(f"{where(key)}: `{key}` must be a mapping of keys to values, got {value!r}")
    adapter = TypeAdapter(_narrowed(hint), config=ConfigDict(coerce_numbers_to_str=True))
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        message = _message(error.errors(), key, nullable=types.NoneType in members)
        raise UserError(f"{where(key)}: {message}") from None


def _section(sections: Sequence[Any], values: Mapping[str, Any], key: str, where: Where) -> type:
    """The dataclass of a section; where there are several, the one whose `backend` is named.

    Raises:
        UserError: `backend` is missing, or none of them has it.
    """
    if len(sections) == 1:
        return sections[0]
    # The section without a name of its own stands for all classes and functions that a user names by their path.
    known = {section.backend: section for section in sections if hasattr(section, "backend")}
    imported = next((section for section in sections if not hasattr(section, "backend")), None)
    name, named = values.get("backend"), f"`{key}.backend`"
    wanted = ", ".join(known) + (", or package.module:Name of your own" if imported else "")
    if name is None:
        raise UserError(f"{where(key)}: the key {named} is missing: it is one of {wanted}")
    if imported is not None and re.fullmatch(r"[\w.]+:\w+", str(name)):
        return imported
    if name not in known:
        got = f"got {name!r}{did_you_mean(str(name), known)}"
        raise UserError(f"{where(f'{key}.backend')}: {named} must be one of {wanted}, {got}")
    return known[name]


def _narrowed(hint: Any) -> Any:
    """`hint` with no more conversions than a recipe needs."""
    if hint is bool:
        return StrictBool
    if hint in (int, float):
        return Annotated[hint, BeforeValidator(_number if hint is int else _number_or_text)]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal or _is_enum(hint):
        words = arguments if origin is Literal else [member.value for member in hint]
        return Annotated[hint, BeforeValidator(partial(_word, words=words))]
    if origin in _UNIONS:
        # TRL declares the names of an enumeration as `Enum | str`, and any text would pass for the latter.
        chosen = [member for member in arguments if not (member is str and any(map(_is_enum, arguments)))]
        values = [_narrowed(member) for member in chosen if member is not types.NoneType]
        union: Any = values[0]
        if len(values) > 1:
            union = Annotated[Union[tuple(values)], Field(union_mode="left_to_right")]  # noqa: UP007  (a run-time tuple)
        return union | None if len(values) < len(chosen) else union
    if (origin or hint) in (list, tuple):
        items = tuple(item if item is Ellipsis else _narrowed(item) for item in arguments)
        return Annotated[origin[items] if origin else hint, BeforeValidator(_listed)]
    return hint


def _number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise PydanticCustomError("int_type", "not a whole number")
    return value


def _number_or_text(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("float_type", "not a number")
    return value


def _word(value: Any, words: Sequence[Any]) -> Any:
    """The one of these words that YAML has read as true or false."""
    meant = [word for word in words if isinstance(value, bool) and word in _READ_AS[value]]
    return meant[0] if len(meant) == 1 else value


def _listed(value: Any) -> Any:
    return value if value is None or isinstance(value, list | tuple | Mapping) else [value]


def _is_enum(member: Any) -> bool:
    return isinstance(member, type) and issubclass(member, Enum)


def _message(errors: Sequence[ErrorDetails], key: str, *, nullable: bool) -> str:
    """What is wrong with a value, of the errors of all members of a union."""
    # In `str | list[str]`, an item that is no text says more than a list that is none.
    places = [[part for part in error["loc"] if isinstance(part, int)] for error in errors]
    depth = max(map(len, places))
    deepest = [error for error, place in zip(errors, places, strict=True) if len(place) == depth]
    item = "".join(f"[{number}]" for number in next(place for place in places if len(place) == depth))
    wanted = list(dict.fromkeys(map(_wanted, deepest))) + ["null"] * (nullable and not depth)
    value = deepest[0]["input"]
    trap = ""
    if isinstance(value, bool) and any(error["type"] in ("string_type", "enum", "literal_error") for error in deepest):
        trap = f" (YAML reads a bare yes, no, on, off as true or false: put quotes around it, not {value})"
    return f"`{key}{item}` must be {' or '.join(wanted)}, got {value!r}{trap}"


def _wanted(error: ErrorDetails) -> str:
    if error["type"] in ("enum", "literal_error"):
        return str(error.get("ctx", {})["expected"])
    return _WANTED.get(error["type"].partition("_")[0], error["msg"])
