"""Which options of a configuration are read by code that can run: a walk over the sources of a trainer.

Starting from what scripts call, every method that another can reach is followed through the order in which Python
looks classes up; what an override hides does not count. An `__init__` mostly keeps options for later: what it puts in
an attribute counts where another method that can be reached reads that attribute.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from types import ModuleType
from typing import Any


ENTRIES = ("train", "evaluate", "save_model", "save_state", "push_to_hub", "create_model_card", "close", "log")
"""What scripts call on a trainer."""

_ARGUMENTS = ("args", "training_args")
_LIBRARIES = ("mmsearch_trl", "trl", "transformers")


def read_by_run(trainer: type, config: type, modules: Iterable[ModuleType]) -> set[str]:
    """Names that a run reads of its arguments.

    Args:
        config: The class of the arguments; what the checks of ours and of TRL's look at does not count as read.
        modules: Where a trainer hands its arguments to: what is read of them there counts.
    """
    reads = set[str]().union(*(_reads_of_arguments(ast.parse(inspect.getsource(module))) for module in modules))
    reads |= set[str]().union(*map(_reads_of_self, _methods(config)))
    kept: dict[str, set[str]] = {}
    attributes: set[str] = set()
    for function in _reachable(trainer):
        tree = _tree(function)
        if function.__name__ == "__init__":
            for attribute, names in _kept(tree):
                kept.setdefault(attribute, set()).update(names)
            reads |= set[str]().union(*map(_reads_of_arguments, _other_statements(tree)))
        else:
            reads |= _reads_of_arguments(tree)
            attributes |= _reads_of_self(tree)
    return reads.union(*(names for attribute, names in kept.items() if attribute in attributes))


def attributes_read(modules: Iterable[ModuleType]) -> set[str]:
    """Names of all attributes that the modules read of anything."""
    return set[str]().union(*map(_attributes_read, modules))


@cache
def _attributes_read(module: ModuleType) -> set[str]:
    nodes = ast.walk(ast.parse(inspect.getsource(module)))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and _is_read(node)}


def _methods(config: type) -> Iterator[ast.AST]:
    """Of the class and its parents, without what checks values: transformers' own also makes devices of them."""
    for cls in config.__mro__:
        of_transformers = cls.__module__.startswith("transformers.")
        for name, member in vars(cls).items():
            function = member.fget if isinstance(member, property) else getattr(member, "func", inspect.unwrap(member))
            checks = name.startswith("__") and not (of_transformers and name == "__post_init__")
            if inspect.isfunction(function) and not checks:
                yield _tree(function)


def _reachable(trainer: type) -> Iterator[Any]:
    """The functions of the trainer's classes that a run can call."""
    seen: set[Any] = set()
    todo: list[tuple[str, type | None]] = [(name, None) for name in ("__init__", *ENTRIES)]
    while todo:
        name, below = todo.pop()
        found = _lookup(trainer, name, below)
        if found is None or found in seen:
            continue
        seen.add(found)
        function, owner = found
        yield function
        tree = _tree(function)
        todo += [(called, None) for called in _reads_of_self(tree)]
        todo += [(called, owner) for called in _reads_of_super(tree)]


def _lookup(trainer: type, name: str, below: type | None) -> tuple[Any, type] | None:
    """The function that `self.name` is, or `super().name` in a method of `below`, and whose it is."""
    order = trainer.__mro__
    for cls in order if below is None else order[order.index(below) + 1 :]:
        member = vars(cls).get(name)
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if inspect.isfunction(function) and cls.__module__.split(".")[0] in _LIBRARIES:
            return inspect.unwrap(function), cls
    return None


@cache
def _tree(function: Any) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def _kept(tree: ast.AST) -> Iterator[tuple[str, set[str]]]:
    """Attributes of `self` that are made of arguments, with the names of these."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and (names := _reads_of_arguments(node.value)):
            targets = (target for target in node.targets if isinstance(target, ast.Attribute))
            yield from ((target.attr, names) for target in targets if _named(target.value, "self"))


def _other_statements(tree: ast.AST) -> Iterator[ast.AST]:
    """What a method does beside keeping arguments, conditions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If):
            yield node.test
        elif isinstance(node, ast.stmt) and not hasattr(node, "body") and not any(_kept(node)):
            yield node


def _is_read(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)


def _attribute(node: ast.AST) -> str | None:
    return node.attr if isinstance(node, ast.Attribute) else None


def _named(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Name) and node.id in names


def _reads_of_arguments(tree: ast.AST) -> set[str]:
    read = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_read(node))
    return {node.attr for node in read if _named(node.value, *_ARGUMENTS) or _attribute(node.value) in _ARGUMENTS}


def _reads_of_self(tree: ast.AST) -> set[str]:
    return {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and _is_read(n) and _named(n.value, "self")}


def _reads_of_super(tree: ast.AST) -> set[str]:
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Call) and _named(node.value.func, "super")
    }
