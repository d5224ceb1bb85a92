"""Where the system or a library says no to something that a person named: its exception becomes a `UserError`.

Each of these stands where the name of the file, the model or the package is known. What it takes for the user's
mistake is what the system or that library raises, so `reading` and `writing` may stand around our own code, and
`loading` and `optional` may not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmsearch_trl.core.errors import UserError


@contextmanager
def reading(file: str | Path) -> Iterator[None]:
    """
    Raises:
        UserError: the system does not let the file be read (it is missing, a folder, not ours to read).
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or file}: cannot be read: {reason(error)}") from error


@contextmanager
def writing(place: str | Path, *others: type[Exception]) -> Iterator[None]:
    """
    Args:
        others: What a library raises instead, where the disk is full.

    Raises:
        UserError: the system does not let the file or folder be written (its folder, its rights, a full disk).
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or place}: cannot be written: {reason(error)}") from error
    except others as error:
        raise UserError(f"{place}: cannot be written: {error}") from error


@contextmanager
def loading(what: str, name: str | Path, *others: type[Exception]) -> Iterator[None]:
    """Around `from_pretrained`, which says in any of these types that a model is not there, is damaged, or needs more.

    Args:
        what: Such as `the text encoder`.
        others: What a library raises instead, where the weights are damaged.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, *others) as error:
        raise UserError(f"{what} {str(name)!r} cannot be loaded: {error}") from error


@contextmanager
def optional(purpose: str, *extras: str) -> Iterator[None]:
    """Around the import of a package that not every installation has.

    Args:
        purpose: Such as `searching by ddgs`.
        extras: Of this package's `pyproject.toml`; one of several will do.

    Raises:
        UserError: it is not installed, or does not load; names the extras.
    """
    try:
        yield
    except ImportError as error:
        raise missing(purpose, *extras, why=str(error)) from error


def missing(purpose: str, *extras: str, why: str) -> UserError:
    """That something needs an extra which is not installed."""
    commands = " or ".join(f"pip install 'mmsearch-trl[{extra}]'" for extra in extras)
    return UserError(f"{purpose} needs an optional package ({why}): {commands}")


def reason(error: OSError) -> str:
    """What the system says, without the file's name."""
    return error.strerror or str(error) or type(error).__name__
