"""The nearest known name, for the message about one that is not known."""

import difflib
from collections.abc import Collection, Iterable
from functools import lru_cache


_NEAR = 0.85
"""Share of letters in common from which a name counts as another mistyped: `catgory` does, `image_id` does not."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: `; did you mean ...?`, or nothing where no name is known at all."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"; did you mean `{near[0]}`?" if near else ""


def check_spelling(names: Collection[str], known: tuple[str, ...]) -> str | None:
    """What to say of the first name that is nearly a known one, where the known one is not among the names.

    Names that are neither known nor nearly so are nobody's mistake.
    """
    for name in names:
        meant = () if name in known else _nearly(name, known)
        if meant and not any(other in names for other in meant):
            return f"{name!r} is not known; did you mean {meant[0]!r}?"
    return None


@lru_cache(4096)
def _nearly(name: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The known names of which this is another spelling, or a slip of the hand."""
    letters, spellings = _letters(name), _spellings(known)
    swapped = [other for other in spellings if len(other) == len(letters) and sorted(other) == sorted(letters)]
    near = swapped or difflib.get_close_matches(letters, spellings, n=1, cutoff=_NEAR)
    return spellings[near[0]] if near else ()


@lru_cache
def _spellings(known: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Names by their letters."""
    found: dict[str, tuple[str, ...]] = {}
    for name in known:
        found[_letters(name)] = (*found.get(_letters(name), ()), name)
    return found


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold())).removesuffix("s")
