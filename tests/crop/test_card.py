"""The quick start of a model's card makes the tools that the model was trained with."""

import tiny

from mmsearch_trl.hub.facts import ModelFacts
from mmsearch_trl.hub.quick_start import quick_start
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.protocol.mmsearch import MMSearchProtocol
from mmsearch_trl.protocol.tool import Tool
from mmsearch_trl.rollout.rollouter import Rollouter
from mmsearch_trl.tools.crop import CropTool
from mmsearch_trl.world.protocol import PROMPTS, TEMPLATES


def code_of(processor: object, *tools: Tool) -> str:
    protocol = MMSearchProtocol(ChatEncoder(processor), PROMPTS, TEMPLATES, tools)
    rollouter = Rollouter(protocol, tiny.CannedTools(), tiny.LIMITS)
    facts = ModelFacts(
        model=None, hub_id="me/it", rollouter=rollouter, resize_images=False, rewards={}, step=1, history=[]
    )
    return quick_start("me/it", facts)


def test_the_quick_start_makes_the_tools_and_runs_them() -> None:
    processor = tiny.qwen25().processor
    tool = CropTool(limit=3, coordinates="thousandths", min_side=56)
    lines = code_of(processor, tool).splitlines()
    compile("\n".join(lines), "card", "exec")
    assert "search = Toolbox(search, protocol.tools)" in lines
    begin, end = lines.index("# How the model was taught to search."), lines.index("chat = protocol.chat")
    names = {"processor": processor}
    exec("\n".join([line for line in lines if line.startswith("from mmsearch_trl")] + lines[begin:end]), names)
    assert isinstance(made := names["protocol"], MMSearchProtocol)
    assert made.tools == (tool,) and made.templates == TEMPLATES


def test_without_tools_it_speaks_of_none() -> None:
    assert "ool" not in code_of(tiny.qwen25().processor)
