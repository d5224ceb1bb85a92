"""A user's own backend: `backend: package.module:Name` (`core/imported.py`).

A class is made with the section's other keys as keyword arguments, and is a `SearchBackend`: it has `name`,
`fingerprint` and `search(query, k)`. A function is such a `search` itself, and gets the keys at every call:
`search(query, k, **keys)`. Both may be `async` or not; what blocks runs on a thread.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from mmsearch_trl.core.imported import ImportedName
from mmsearch_trl.search.calls.backend import SearchBackend
from mmsearch_trl.search.calls.section import BackendConfig, ImageConfig, Shared, TextConfig
from mmsearch_trl.search.index.folder import digest_of


_BACKEND = ("name", "fingerprint", "search")


@dataclass(frozen=True, kw_only=True)
class ImportedConfig:
    """What a section with `backend: package.module:Name` has beside the keys of its tool."""

    section: ClassVar[str]

    backend: str = field(metadata={"help": "A class or function of yours; all other keys are passed to it."})
    arguments: Mapping[str, Any] = field(
        default_factory=dict, metadata={"help": "What is passed to it.", "other_keys": True}
    )

    def check(self) -> None:
        """
        Raises:
            UserError: there is no such class or function, or it does not take these keys.
        """
        made = self._imported.load()
        given = self.arguments if inspect.isclass(made) else {"query": None, "k": None, **self.arguments}
        self._imported.check_keys(made, given)

    def open(self, shared: Shared) -> SearchBackend[Any]:
        made = self._imported.load()
        if not inspect.isclass(made):
            return FunctionBackend(made, self.backend, self.arguments)
        with self._imported.blamed("raised"):
            backend: Any = made(**self.arguments)
        self._imported.check_has(backend, _BACKEND, "a backend")
        return backend

    @property
    def _imported(self) -> ImportedName:
        return ImportedName(self.section, "backend", self.backend, own=[each.name for each in fields(BackendConfig)])


@dataclass(frozen=True, kw_only=True)
class ImportedImageConfig(ImportedConfig, ImageConfig):
    """`search.image` with `backend: package.module:Name`."""


@dataclass(frozen=True, kw_only=True)
class ImportedTextConfig(ImportedConfig, TextConfig):
    """`search.text` with `backend: package.module:Name`."""


class FunctionBackend:
    """A function as a `SearchBackend`: another text of its module, or other keys, and cached results are not its own.

    Args:
        path: `package.module:name`.
        arguments: Passed to it beside query and number of hits.
    """

    def __init__(self, function: Callable[..., Any], path: str, arguments: Mapping[str, Any]) -> None:
        self.name = path
        self.search: Any = partial(function, **arguments)
        file = inspect.getsourcefile(function)
        code = Path(file).read_bytes() if file else b""
        self.fingerprint = digest_of(path, json.dumps(arguments, sort_keys=True, default=str), code)
