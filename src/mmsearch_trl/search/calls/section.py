"""A section of a recipe that says what answers a tool, `search.image` or `search.text`: what all backends' have alike.

The section of each backend is a dataclass beside it, such as `BM25Config` in `search/text/bm25.py`. It is checked when
it is made, looks for its files before any work is done (`check`), and opens its backend (`open`). Every message names
the recipe's key.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.search.calls.backend import Answer, SearchBackend
from mmsearch_trl.search.calls.validation import MAX_HITS


class AnswerStore(Protocol):
    """Where a backend of several stages keeps what each of them gave; `ResultStore` is one."""

    def get(self, key: str, /) -> Answer | None: ...

    def put(self, key: str, answer: Answer, /) -> Answer: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What the backends of a run share.

    Attributes:
        denied_hosts: Hosts from which nothing may be fetched.
        store: The cached results; None where none are kept.
    """

    denied_hosts: Sequence[str] = ()
    store: AnswerStore | None = None


@dataclass(frozen=True, kw_only=True)
class BackendConfig(ABC):
    """The keys of every section.

    Raises:
        UserError: a number is out of range.
    """

    section: ClassVar[str]
    """Where it stands in a recipe."""
    paths: ClassVar[tuple[str, ...]] = ()
    """Keys that name a file or folder which must be there."""

    backend: str
    top_k: int
    calls_per_second: float | None = field(
        default=None, metadata={"help": "Searches begun a second, per process; default: any number."}
    )
    price_per_call: float = field(
        default=0.0,
        metadata={
            "help": "Dollars that a search by a paid service costs, by your plan, for the estimate of what a run "
            "costs; default: not known."
        },
    )

    def __post_init__(self) -> None:
        for key in ("top_k", "calls_per_second"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise UserError(f"{self.section}.{key} is {value}: it must be greater than 0")
        if self.top_k > MAX_HITS:
            raise UserError(f"{self.section}.top_k is {self.top_k}: it must be {MAX_HITS} or less")
        if self.price_per_call < 0:
            raise UserError(f"{self.section}.price_per_call is {self.price_per_call}: it must be 0 or more")

    def check(self) -> None:
        """
        Raises:
            UserError: a file or folder is not there.
        """
        for key in self.paths:
            if not Path(getattr(self, key)).exists():
                raise UserError(f"{self.section}.{key}: {getattr(self, key)} does not exist")

    @abstractmethod
    def open(self, shared: Shared) -> SearchBackend[Any]:
        """The backend; the caller names `backend` as the key of an error that names none.

        Raises:
            UserError: it cannot be opened, or a package that it needs is not installed.
        """


@dataclass(frozen=True, kw_only=True)
class ImageConfig(BackendConfig):
    """The keys of every `search.image`."""

    section = "search.image"

    top_k: int = field(default=5, metadata={"help": "Most results of an image search."})


@dataclass(frozen=True, kw_only=True)
class TextConfig(BackendConfig):
    """The keys of every `search.text`."""

    section = "search.text"

    top_k: int = field(default=3, metadata={"help": "Most results of a text search."})


def open_backend(config: BackendConfig, shared: Shared = Shared()) -> SearchBackend[Any]:
    """The backend that a section names.

    Raises:
        UserError: it cannot be opened; names the key and what is wrong with its value.
    """
    config.check()
    with named(f"{config.section}.backend"):
        backend = config.open(shared)
        if config.price_per_call and not getattr(backend, "paid", False):
            raise UserError(f"{config.section}.price_per_call is set, and backend {config.backend} costs nothing")
        return backend


@contextmanager
def named(key: str) -> Iterator[None]:
    """Puts a recipe's key before whatever is wrong with its value."""
    try:
        yield
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith("search.") else f"{key}: {message}") from error
