"""`package.module:Name` in a recipe: a class or function of the user's, imported from any path, that of the working
directory first.

Whatever is wrong in the user's code when it is imported or called is told with the recipe's key, and with the line of
that code: it is a mistake in what a person gave, and not a defect of this package.
"""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.nearest import did_you_mean


@dataclass(frozen=True, slots=True)
class ImportedName:
    """What the recipe's `section.key` names.

    Attributes:
        own: Keys of the section that are not passed on.
    """

    section: str
    key: str
    path: str
    own: Collection[str] = ()

    def load(self) -> Any:
        """The class or function.

        Raises:
            UserError: there is none.
        """
        path, _, name = self.path.partition(":")
        if (here := os.getcwd()) not in sys.path and "" not in sys.path:
            sys.path.insert(0, here)  # as `python -m` does
        try:
            with self.blamed("cannot be imported:"):
                module = importlib.import_module(path)
        except UserError as error:
            cause = error.__cause__
            if isinstance(cause, ModuleNotFoundError) and f"{path}.".startswith(f"{cause.name}."):
                known = f"looked for in {here} and among the installed packages"
                raise UserError(f"{self.section}.{self.key}: there is no module {cause.name} ({known})") from error
            raise
        if not hasattr(module, name):
            near = did_you_mean(name, [known for known in vars(module) if not known.startswith("_")])
            raise UserError(f"{self.section}.{self.key}: {path} has no `{name}`{near}")
        made = getattr(module, name)
        if not callable(made):
            raise self.wrong(f"is a {type(made).__name__}, neither a class nor a function")
        return made

    def check_keys(self, made: Any, given: Mapping[str, Any]) -> None:
        """
        Raises:
            UserError: `made` does not take the arguments `given`, or wants more.
        """
        try:
            parameters = inspect.signature(made).parameters.values()
        except (TypeError, ValueError):  # one of a C extension, which does not tell
            return
        named = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            for key in given:
                if key not in named:
                    near = did_you_mean(key, [*named, *self.own])
                    raise UserError(f"{self.section}.{key}: {self.path} takes no `{key}`{near}")
        for each in parameters:
            if each.name in named and each.default is each.empty and each.name not in given:
                why = "is the section's own key, and is not passed on" if each.name in self.own else "is missing"
                raise UserError(f"{self.section}.{each.name} {why}: {self.path} needs it")

    @contextmanager
    def blamed(self, what: str) -> Iterator[None]:
        """Names the key, and the line of the user's code, where that raises."""
        try:
            yield
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            raised = f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"
            raise self.wrong(f"{what} {raised}") from error

    def check_has(self, made: Any, names: Collection[str], what: str) -> None:
        """
        Raises:
            UserError: `made` has not all attributes of `what`.
        """
        if missing := [name for name in names if not hasattr(made, name)]:
            raise self.wrong(f"has no {' and no '.join(f'`{name}`' for name in missing)}, which {what} needs")

    def wrong(self, what: str) -> UserError:
        return UserError(f"{self.section}.{self.key}: {self.path} {what}")
