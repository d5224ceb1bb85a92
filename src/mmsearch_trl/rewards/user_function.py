"""A reward function of the user's, from a file or a module, in one of two signatures.

* OpenRLHF's, which LMM-R1 has: `reward_func(queries, prompts, labels)` gives a tensor or a list of numbers, or a
  mapping that holds them as `rewards`. A query is prompt and completion as one text with its control tokens, a prompt
  the messages before as JSON, a label the first accepted answer, "" where there is none.
* TRL's: `reward(prompts, completions, completion_ids, <columns of the data>, trainer_state, log_extra, log_metric)`,
  all by name; it takes what it names, or all with `**kwargs`, and gives a list of numbers, None where it has none.

Either may be a coroutine function. What is wrong in it ends the run with its file and line.
"""

import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.imported import ImportedName


SECTION, KEY = "reward", "function"
_OPENRLHF = ("queries", "prompts", "labels")
_DEFAULT = "reward_func"
"""What a file is asked for where no name is given, as OpenRLHF does."""


@cache
def user_function(path: str) -> "UserFunction | AsyncUserFunction":
    """The function that a recipe names: `my.py`, `my.py:name`, `package.module:name`.

    Raises:
        UserError: there is none, or it takes arguments that nobody gives.
    """
    file, _, name = path.rpartition(":") if not path.endswith(".py") else (path, "", "")
    if file.endswith(".py"):
        named = ImportedName(SECTION, KEY, f"{file}:{name or _DEFAULT}")
        made = _of_file(named, Path(file), name or _DEFAULT)
    elif file and name:
        named = ImportedName(SECTION, KEY, path)
        made = named.load()
    else:
        raise UserError(f"{SECTION}.{KEY}: {path!r} names no function: write my_file.py:name or package.module:name")
    if isinstance(made, type):
        with named.blamed("cannot be made:"):
            made = made()
    is_async = inspect.iscoroutinefunction(made) or inspect.iscoroutinefunction(getattr(made, "__call__", None))  # noqa: B004
    return (AsyncUserFunction if is_async else UserFunction)(named, made, f"{Path(file).stem}.{name or _DEFAULT}")


class _Function:
    """
    Args:
        named: Where the recipe says so.
        function: In either signature.
        name: TRL names its metric after it.
    """

    def __init__(self, named: ImportedName, function: Callable[..., Any], name: str) -> None:
        self._named, self._function, self.__name__ = named, function, name
        parameters = inspect.signature(function).parameters.values()
        self._takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters)
        self._takes = [
            each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
        ]
        self._needs = [each.name for each in parameters if each.name in self._takes and each.default is each.empty]
        self._openrlhf = all(name in self._takes for name in _OPENRLHF)
        if not self._openrlhf and not self._takes_all and "completions" not in self._takes:
            raise named.wrong(
                f"takes {', '.join(self._takes) or 'nothing'}: a reward function takes queries, prompts and labels "
                "(OpenRLHF's), or completions and what else it names (TRL's)"
            )

    def _arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """
        Raises:
            UserError: it needs a column that the data have not.
        """
        arguments = dict(given)
        if self._openrlhf:
            arguments["prompts"] = [json.dumps(prompt, ensure_ascii=False) for prompt in given["prompts"]]
            arguments["labels"] = [str(next(iter(golds), "")) for golds in given.get("answers") or self._none(given)]
            arguments["queries"] = list(given["queries"])
        if lacking := [name for name in self._needs if name not in arguments]:
            known = ", ".join(sorted(arguments))
            raise self._named.wrong(f"needs `{lacking[0]}`, which is none of what there is: {known}")
        return arguments if self._takes_all else {name: arguments[name] for name in self._takes if name in arguments}

    def _none(self, given: Mapping[str, Any]) -> Sequence[tuple[str, ...]]:
        return [()] * len(given["prompts"])

    def _numbers(self, result: Any, count: int) -> list[float | None]:
        """What it gave, as numbers.

        Raises:
            UserError: it gave something else, or another number of them.
        """
        rewards: Any = result.get("rewards") if isinstance(result, Mapping) else result
        rewards = rewards.flatten().tolist() if hasattr(rewards, "flatten") else rewards
        if not isinstance(rewards, Sequence) or isinstance(rewards, str):
            raise self._named.wrong(f"gave {type(rewards).__name__}, and not a list of numbers")
        if len(rewards) != count:
            raise self._named.wrong(f"gave {len(rewards)} rewards for {count} completions")
        with self._named.blamed("gave what is no number:"):
            return [None if reward is None else float(reward) for reward in rewards]


class UserFunction(_Function):
    """As TRL calls it."""

    def __call__(self, **given: Any) -> list[float | None]:
        arguments = self._arguments(given)
        with self._named.blamed("raised"):
            result = self._function(**arguments)
        return self._numbers(result, len(given["completions"]))


class AsyncUserFunction(_Function):
    """The same of a coroutine function."""

    async def __call__(self, **given: Any) -> list[float | None]:
        arguments = self._arguments(given)
        with self._named.blamed("raised"):
            result = await self._function(**arguments)
        return self._numbers(result, len(given["completions"]))


def _of_file(named: ImportedName, file: Path, name: str) -> Callable[..., Any]:
    if not file.is_file():
        raise UserError(f"{SECTION}.{KEY}: there is no file {file} (looked for from {Path.cwd()})")
    spec = importlib.util.spec_from_file_location(f"mmsearch_reward_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up
    if (folder := str(file.absolute().parent)) not in sys.path:
        sys.path.append(folder)  # what lies beside it
    with named.blamed("cannot be imported:"):
        spec.loader.exec_module(module)
    made = getattr(module, name, None)
    if not callable(made):
        raise UserError(f"{SECTION}.{KEY}: {file} has no function `{name}`")
    return made
