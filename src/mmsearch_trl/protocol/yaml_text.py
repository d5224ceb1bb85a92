"""YAML that a person wrote, read more strictly than YAML is: a key that stands twice, of which all but the last would
be lost without a word, is refused, and so is what is nested deeper than any of our files can be.
"""

from collections.abc import Hashable
from typing import Any

import yaml

from mmsearch_trl.core.errors import UserError, shortened


_DEEPEST = 50


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` with these two rules."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > _DEEPEST:
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem=f"nested more than {_DEEPEST} deep", problem_mark=mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # no key of ours
            merges = key_node.tag == "tag:yaml.org,2002:merge"
            key, line = "<<" if merges else self.construct_object(key_node), key_node.start_mark.line + 1
            if key in lines:
                problem = f"the key {str(key)!r} stands twice, here and in line {lines[key]}: take one out"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            lines[key] = line
        return super().construct_mapping(node, deep)


def read_yaml(text: str | bytes, place: str) -> Any:
    """The values of a YAML text.

    Args:
        place: The file, or where else it is written; stands before messages.

    Raises:
        UserError: it is no YAML, a key of a mapping stands twice, or it is nested too deep.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        words = "; ".join(filter(None, (error.context, error.problem)))
        raise UserError(f"{place}{line}: not readable as YAML: {shortened(words, 300)}") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        words = shortened(" ".join(str(error).split()), 300)
        raise UserError(f"{place}: not readable as YAML: {words}") from error
