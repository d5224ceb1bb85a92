"""Code that loads a trained model and answers one question with it, as in training.

It holds the very prompts, wording and limits that the model was trained with, where they are not the shipped ones.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any

from mmsearch_trl.core.redaction import redacted
from mmsearch_trl.hub.facts import ModelFacts
from mmsearch_trl.protocol.base import TurnProtocol
from mmsearch_trl.protocol.direct import DirectProtocol
from mmsearch_trl.protocol.mmsearch import MMSearchProtocol
from mmsearch_trl.protocol.prompt_files import Prompts
from mmsearch_trl.protocol.search_r1 import SearchR1Protocol, load_search_r1_prompt
from mmsearch_trl.protocol.tool import Tool
from mmsearch_trl.protocol.upstream_mmsearch import UpstreamMMSearchProtocol


def quick_start(model_id: str, facts: ModelFacts) -> str:
    """Python that loads the model and answers one question with it, searching as in training."""
    limits, images, searches = facts.rollouter.limits, facts.sees_images, facts.searches
    search_images = isinstance(facts.protocol, MMSearchProtocol)
    imports, protocol = _protocol(facts.protocol)
    opening = ["load_prompt_image", *(["resize_prompt_image"] if facts.resize_images else [])]
    tools, given = bool(facts.rollouter.tool_names), "search" if searches else "None"
    lines = [
        "import asyncio",
        "",
        "import torch",
        "from trl import ModelConfig",
        "",
        "from mmsearch_trl.recipe.build import build_engine, load_agent, load_processor",
        *([f"from mmsearch_trl.data.images import {', '.join(opening)}"] if images else []),
        *([] if searches else ["from mmsearch_trl.core.message import Message"]),
        "from mmsearch_trl.core.task import Task",
        "from mmsearch_trl.core.completion import SamplingParams",
        "from mmsearch_trl.protocol.chat import ChatEncoder",
        *imports,
        f"from {type(limits).__module__} import {type(limits).__name__}",
        "from mmsearch_trl.rollout.loop import run_trajectory",
        *(["from mmsearch_trl.rollout.toolbox import Toolbox"] if tools else []),
        *(["from mmsearch_trl.search.config import SearchConfig"] if searches else []),
        *(["from mmsearch_trl.search.factory import build_runtime"] if searches else []),
        *(["from mmsearch_trl.search.image.index import ImageIndexConfig"] if search_images else []),
        *(["from mmsearch_trl.search.text.bm25 import BM25Config"] if searches else []),
        "",
        f"config = ModelConfig(model_name_or_path={model_id!r}, dtype='auto')",
        "processor = load_processor(config)",
        "model = load_agent(config).to('cuda' if torch.cuda.is_available() else 'cpu').eval()",
        "",
        f"# How the model was taught to {'search' if searches else 'answer'}.",
        *protocol,
        f"limits = {_call(limits)}",
        "",
        *(_own_search(facts, images=search_images) if searches else []),
        *(["search = Toolbox(search, protocol.tools)"] if tools else []),
        "",
        *_example(facts),
        "sampling = SamplingParams(max_tokens=limits.max_turn_tokens, temperature=0.0)",
        "engine = build_engine(model, chat)",
        f"trajectory = asyncio.run(run_trajectory(task, engine, protocol, {given}, limits, sampling))",
        "engine.close()",
        "for turn in trajectory.turns:",
        "    print(turn.text)",
        "print('Answer:', trajectory.turns[-1].action.text)",
    ]
    return "\n".join(lines)


def _example(facts: ModelFacts) -> list[str]:
    """The lines that make a task."""
    lines, image = [], 'load_prompt_image("photo.jpg")'
    if facts.sees_images:
        lines.append(f"image = {f'resize_prompt_image({image})' if facts.resize_images else image}")
    question = "What is its name?" if facts.sees_images else "Who wrote Moby-Dick?"
    images = ", images=(image,)" if facts.sees_images else ""
    if facts.searches:
        return [*lines, f"task = Task(id='1', question={question!r}{images})"]
    place = "None, " if facts.sees_images else ""  # where the image stands
    return [
        *lines,
        f"question = {question!r}",
        f"messages = (Message('user', ({place}question,)),)",
        f"task = Task(id='1', question=question{images}, messages=messages)",
    ]


def _own_search(facts: ModelFacts, *, images: bool) -> list[str]:
    return [
        "# Your own, made by `mmsearch index text PASSAGES --out text_index`, and `mmsearch index image`.",
        f"search = build_runtime({_search_config(facts.result_counts, images=images)})",
    ]


def _search_config(counts: Mapping[str, int], *, images: bool) -> str:
    """The call that makes the configuration of a search in the reader's own indexes."""
    backends = {"text": "BM25Config"} | ({"image": "ImageIndexConfig"} if images else {})
    top_k = {tool: f", top_k={counts[f'{tool}_top_k']}" if f"{tool}_top_k" in counts else "" for tool in backends}
    sections = [f"    {tool}={name}(path='{tool}_index'{top_k[tool]}),\n" for tool, name in backends.items()]
    return f"SearchConfig(\n{''.join(sections)})"


def _protocol(protocol: TurnProtocol) -> tuple[list[str], list[str]]:
    """The lines that import a protocol and those that make it; they cannot make one of the user's own."""
    if isinstance(protocol, DirectProtocol):
        return ["from mmsearch_trl.protocol.direct import DirectProtocol"], [
            "chat = ChatEncoder(processor)",
            "protocol = DirectProtocol(chat)",
        ]
    if isinstance(protocol, SearchR1Protocol):
        prompt = "None" if protocol.prompt_text == load_search_r1_prompt() else repr(protocol.prompt_text)
        most = protocol.max_observation_tokens
        return ["from mmsearch_trl.protocol.search_r1 import SearchR1Protocol"], [
            "chat = ChatEncoder(processor)",
            f"protocol = SearchR1Protocol(chat, {prompt}, max_observation_tokens={most})",
        ]
    if not isinstance(protocol, MMSearchProtocol) or type(protocol) not in (
        MMSearchProtocol,
        UpstreamMMSearchProtocol,
    ):
        return [], ["chat = ChatEncoder(processor)", f"protocol = ...  # your {type(protocol).__name__}"]
    if isinstance(protocol, UpstreamMMSearchProtocol):
        name, made = "upstream_mmsearch", "UpstreamMMSearchProtocol(processor"
    else:
        name, made = "mmsearch", "MMSearchProtocol(ChatEncoder(processor)"
    return [
        f"from mmsearch_trl.protocol.{name} import {type(protocol).__name__}",
        "from mmsearch_trl.protocol.prompt_files import Prompts",
        "from mmsearch_trl.protocol.reply_templates import ReplyTemplates",
        *(f"from {type(tool).__module__} import {type(tool).__name__}" for tool in protocol.tools),
    ], [
        f"prompts = {_prompts(protocol)}",
        f"templates = {_call(protocol.templates)}",
        *(["tools = [", *(f"    {_tool(tool)}" for tool in protocol.tools), "]"] if protocol.tools else []),
        f"protocol = {made}, prompts, templates{', tools' if protocol.tools else ''})",
        "chat = protocol.chat",
    ]


def _tool(tool: Tool) -> str:
    """The call that makes a tool; of a class of the user's that is no dataclass, only its name is known."""
    if is_dataclass(tool):
        return f"{_call(tool)},".replace("\n", "\n    ")
    return f"{type(tool).__name__}(),  # with what your recipe says"


def _prompts(protocol: MMSearchProtocol) -> str:
    prompts = protocol.prompts
    return "Prompts.load()" if prompts == Prompts.load() else _arguments("Prompts", asdict(prompts))


def _call(value: Any) -> str:
    """The call that makes a dataclass instance, its defaults left out."""
    changed = {
        field.name: getattr(value, field.name)
        for field in fields(value)
        if field.default is MISSING or getattr(value, field.name) != field.default
    }
    return _arguments(type(value).__name__, changed)


def _arguments(name: str, values: Mapping[str, Any]) -> str:
    values = redacted(values)
    if len(values) < 3:
        return f"{name}({', '.join(f'{key}={value!r}' for key, value in values.items())})"
    return f"{name}(\n" + "".join(f"    {key}={value!r},\n" for key, value in values.items()) + ")"
