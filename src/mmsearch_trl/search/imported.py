"""A user's own backend: `backend: package.module:Name` is imported from any path, that of the working directory first.

A class is made with the section's other keys as keyword arguments, and is a `SearchBackend`: it has `name`,
`fingerprint` and `search(query, k)`. A function is such a `search` itself, and gets the keys at every call:
`search(query, k, **keys)`. Both may be `async` or not; what blocks runs on a thread.

Whatever is wrong in the user's code when it is imported or made is told with the recipe's key, and with the line of
that code: it is a mistake in what a person gave, and not a defect of this package.
"""

import importlib
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.nearest import did_you_mean
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
        made = self._imported()
        try:
            signature = inspect.signature(made)
        except (TypeError, ValueError):  # one of a C extension, which does not tell
            return
        given = self.arguments if inspect.isclass(made) else {"query": None, "k": None, **self.arguments}
        self._check_keys(signature, given)

    def open(self, shared: Shared) -> SearchBackend[Any]:
        made = self._imported()
        if not inspect.isclass(made):
            return FunctionBackend(made, self.backend, self.arguments)
        with self._blamed("raised"):
            backend: Any = made(**self.arguments)
        if missing := [name for name in _BACKEND if not hasattr(backend, name)]:
            raise self._wrong(f"has no {' and no '.join(f'`{name}`' for name in missing)}, which a backend needs")
        return backend

    def _imported(self) -> Any:
        path, _, name = self.backend.partition(":")
        if (here := os.getcwd()) not in sys.path and "" not in sys.path:
            sys.path.insert(0, here)  # as `python -m` does
        try:
            with self._blamed("cannot be imported:"):
                module = importlib.import_module(path)
        except UserError as error:
            cause = error.__cause__
            if isinstance(cause, ModuleNotFoundError) and f"{path}.".startswith(f"{cause.name}."):
                known = f"looked for in {here} and among the installed packages"
                raise UserError(f"{self.section}.backend: there is no module {cause.name} ({known})") from error
            raise
        if not hasattr(module, name):
            near = did_you_mean(name, [known for known in vars(module) if not known.startswith("_")])
            raise UserError(f"{self.section}.backend: {path} has no `{name}`{near}")
        made = getattr(module, name)
        if not callable(made):
            raise self._wrong(f"is a {type(made).__name__}, neither a class nor a function")
        return made

    def _check_keys(self, signature: inspect.Signature, given: Mapping[str, Any]) -> None:
        parameters = signature.parameters.values()
        named = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
        own = [each.name for each in fields(BackendConfig)]
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            for key in given:
                if key not in named:
                    raise UserError(
                        f"{self.section}.{key}: {self.backend} takes no `{key}`{did_you_mean(key, [*named, *own])}"
                    )
        for each in parameters:
            if each.name in named and each.default is each.empty and each.name not in given:
                why = "is the section's own key, and is not passed on" if each.name in own else "is missing"
                raise UserError(f"{self.section}.{each.name} {why}: {self.backend} needs it")

    @contextmanager
    def _blamed(self, what: str) -> Iterator[None]:
        """Names the key, and the line of the user's code, where that raises."""
        try:
            yield
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            raised = f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"
            raise self._wrong(f"{what} {raised}") from error

    def _wrong(self, what: str) -> UserError:
        return UserError(f"{self.section}.backend: {self.backend} {what}")


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
