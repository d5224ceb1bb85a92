"""What must not be written down: keys, tokens and passwords, wherever a value holds them.

`redacted` is the one function through which everything goes that a run writes or prints about itself: the recorded
recipe, the saved arguments, the model card, what is sent to trackers, errors and logs. A secret is told

* by its name: a value under `api_key`, `password`, `hub_token` and the like, at any depth;
* by where it stands in a text: the user part of an address, a parameter, an option or an assignment of such a name, a
  bearer token;
* by its shape: tokens of services that are known by their beginning;
* by its value: what an environment variable of such a name holds.
"""

import os
import re
from collections.abc import Mapping
from typing import Any


REDACTED = "<redacted>"
"""Stands for what was left out. No recipe is read that holds it (`recipe/layers.py`)."""

_OF = "hub|api|access|auth|bearer|refresh|session|id|client|bot|user|service|hf|wandb|github|gitlab|openai|jina"
_WORDS = "secret|password|passwd|passphrase|credentials?|authorization|api[_-]?key|private[_-]?key|access[_-]?key"
_NAME = re.compile(rf"(?:.*[_-])?(?:key|{_WORDS}|(?:{_OF})[_-]?token)|token|auth", re.IGNORECASE)
"""Of a key, an option, or a parameter of an address. `pad_token` and `max_tokens` are none."""
_VARIABLE = re.compile(r".*(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)", re.IGNORECASE)
_SHORTEST = 8
"""Characters of a variable's value that can be looked for: shorter ones occur everywhere."""

_USER = re.compile(r"(?<=://)[^\s/?#'\"<>]+@")
_PARAMETER = re.compile(r"(?P<before>[?&;](?P<name>[\w.~-]{1,64})=)[^&;\s#'\"<>]+")
_OPTION = re.compile(r"(?P<before>(?<![\w-])--?(?P<name>[A-Za-z][\w-]{0,63})[=\s]\s{0,8})[^\s'\"<>-][^\s'\"<>]*")
_ASSIGNMENT = re.compile(
    rf"((?:{_WORDS}|(?:{_OF})[_-]?token)['\"]?\s{{0,3}}[:=]\s{{0,3}}['\"]?)([^\s'\"&;,{{}}<>]+)", re.IGNORECASE
)
"""Of fewer names, for other words may stand around: "unknown key: x" tells no secret."""
_BEARER = re.compile(r"(?<!\w)((?:Bearer|Basic)\s{1,3})[\w+/.~-]{16,}=*", re.IGNORECASE)
_SHAPE = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abprs]-|jina_|tvly-|nvapi-|AKIA|AIza|eyJ)"
    r"[\w.-]{16,}"
)


def redacted(value: Any) -> Any:
    """The same value without secrets: mappings and sequences are copied, texts cleaned, all else is left as it is."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return {key: REDACTED if is_secret(key, entry) else redacted(entry) for key, entry in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(redacted(entry) for entry in value)
    return value


def is_secret(name: object, value: Any) -> bool:
    """Whether a value is one by its name: a text or a number that is there."""
    named = isinstance(name, str) and _NAME.fullmatch(name) is not None
    return named and isinstance(value, str | bytes | int) and not isinstance(value, bool) and value not in ("", b"")


def _text(text: str) -> str:
    for secret in _of_the_environment():
        text = text.replace(secret, REDACTED)
    text = _USER.sub(f"{REDACTED}@", text)
    text = _PARAMETER.sub(_without_value, text)
    text = _OPTION.sub(_without_value, text)
    text = _BEARER.sub(rf"\1{REDACTED}", text)
    text = _ASSIGNMENT.sub(rf"\1{REDACTED}", text)
    return _SHAPE.sub(REDACTED, text)


def _without_value(match: re.Match[str]) -> str:
    return match[0] if _NAME.fullmatch(match["name"]) is None else f"{match['before']}{REDACTED}"


def _of_the_environment() -> list[str]:
    """Longest first: one may hold another."""
    values = {value for name, value in os.environ.items() if _VARIABLE.fullmatch(name) and len(value) >= _SHORTEST}
    return sorted((value for value in values if not os.path.exists(value)), key=len, reverse=True)
