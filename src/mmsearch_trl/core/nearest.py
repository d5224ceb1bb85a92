"""The nearest known name, for the message about one that is not known."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: `; did you mean ...?`, or nothing where no name is known at all."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"; did you mean `{near[0]}`?" if near else ""
