"""The `tools:` list of a recipe: what the model may call besides the two searches.

    tools:
      - {tool: crop, limit: 2, coordinates: pixels}
      - {tool: my_package.my_module:MyTool, unit: metres}

A tool of ours is a dataclass, whose fields are its keys; a user's own is made with its other keys as arguments.
"""

from collections.abc import Mapping
from typing import Any

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.imported import ImportedName
from mmsearch_trl.core.nearest import did_you_mean
from mmsearch_trl.protocol.mmsearch import check_tool_names
from mmsearch_trl.protocol.tool import Tool
from mmsearch_trl.recipe.validation import Where, build
from mmsearch_trl.tools.crop import CropTool


TOOLS: Mapping[str, type] = {CropTool.name: CropTool}

_TOOL = ("name", "prompt", "read", "run", "render")


def build_tools(values: Any, where: Where) -> tuple[Tool, ...]:
    """The tools of a `tools:` list; none of None.

    Raises:
        UserError: it is no list of mappings, a tool is unknown or refuses its keys, or two have one name.
    """
    place = where("tools")
    if values is None:
        return ()
    if not isinstance(values, list):
        raise UserError(f"{place}: `tools` must be a list of mappings, each with the key `tool`, got {values!r}")
    tools = tuple(_tool(value, f"tools[{number}]", place) for number, value in enumerate(values))
    try:
        check_tool_names(tools)
    except UserError as error:
        raise UserError(f"{place}: tools: {error}") from error
    return tools


def _tool(value: Any, section: str, place: str) -> Tool:
    if not isinstance(value, Mapping) or not isinstance(value.get("tool"), str):
        raise UserError(
            f"{place}: `{section}` must be a mapping with the key `tool`: {', '.join(TOOLS)}, or package.module:Name "
            f"of your own; got {value!r}"
        )
    keys, path = dict(value), value["tool"]
    del keys["tool"]
    if ":" not in path:
        if path not in TOOLS:
            known = f"must be {', '.join(TOOLS)}, or package.module:Name of your own"
            raise UserError(f"{place}: `{section}.tool` {known}; got {path!r}{did_you_mean(path, list(TOOLS))}")
        return build(TOOLS[path], keys, lambda key: f"{place}: {section}")
    imported = ImportedName(section, "tool", path)
    try:
        made = imported.load()
        imported.check_keys(made, keys)
        with imported.blamed("raised"):
            tool = made(**keys)
        imported.check_has(tool, _TOOL, "a tool")
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    return tool
