"""The README.md that travels with a model: what it is, how it searches, how good it is, and code that runs the search.

A search agent is more than its weights. Its quick start therefore holds the very prompts, wording and limits that the
model was trained with, where they are not the shipped ones; copied out and run, it carries out the loop of training.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from peft import PeftModel

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.redaction import redacted
from mmsearch_trl.hub.card_template import TEMPLATE
from mmsearch_trl.protocol.base import TurnProtocol
from mmsearch_trl.protocol.mmsearch import MMSearchProtocol
from mmsearch_trl.protocol.prompt_files import Prompts
from mmsearch_trl.protocol.search_r1 import SearchR1Protocol, load_search_r1_prompt
from mmsearch_trl.protocol.tool import Tool
from mmsearch_trl.protocol.upstream_mmsearch import UpstreamMMSearchProtocol
from mmsearch_trl.rewards.rule_reward import RuleReward
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.rollouter import Rollouter
from mmsearch_trl.search.runtime import SearchRuntime


_COLUMNS = ("n", "accuracy", "search_ratio", "image_ratio", "text_ratio", "format", "reward")
_EVALUATED = re.compile(r"eval(?:_(?P<name>[^/]+))?_search_ratio")
_LIBRARIES = ("mmsearch-trl", "trl", "transformers", "torch", "peft")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a card says of a trained model.

    Attributes:
        model: Unwrapped; a `PeftModel` where an adapter was trained.
        hub_id: Its name on the Hub, if it has one.
        rollouter: How it searches.
        rewards: The reward functions by name.
        step: Optimizer steps taken.
        history: The trainer's log.
    """

    model: Any
    hub_id: str | None
    rollouter: Rollouter
    resize_images: bool
    rewards: Mapping[str, Any]
    step: int
    history: Sequence[Mapping[str, Any]]

    @property
    def protocol(self) -> TurnProtocol:
        return self.rollouter.protocol

    @property
    def sees_images(self) -> bool:
        return self.protocol.chat.sees_images

    @property
    def base_model(self) -> str | None:
        """What training started from: a Hub name or a folder."""
        name = getattr(self.model.config, "_name_or_path", None)
        return str(name) if name else None


def write_model_card(
    facts: ModelFacts, folder: Path, model_name: str | None, dataset_name: str | None, tags: Sequence[str]
) -> Path:
    """Write `README.md` to a folder and return its path; names and tags as of `Trainer.create_model_card`."""
    adapter, base = isinstance(facts.model, PeftModel), facts.base_model
    data = ModelCardData(
        base_model=base if base and not Path(base).is_dir() else None,
        datasets=dataset_name,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="image-text-to-text" if facts.sees_images else "text-generation",
        model_name=model_name,
        tags=sorted({"generated_from_trainer", *tags}),
    )
    card = ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        name=model_name or folder.name,
        base=_shown_base(base),
        adapter=adapter,
        search_r1=isinstance(facts.protocol, SearchR1Protocol),
        images=facts.sees_images,
        steps=facts.step,
        settings=_settings(facts),
        rewards=[
            ", ".join(f"{key} {value}" for key, value in redacted(dict(function.rule.settings())).items())
            if isinstance(function, RuleReward)
            else name
            for name, function in facts.rewards.items()
        ],
        evaluation=evaluation_table(facts.history),
        code=quick_start(facts.hub_id or str(folder.resolve()), facts),
        versions=", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
    )
    path = folder / "README.md"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(redacted(str(card)), encoding="utf-8")
    return path


def _shown_base(name: str | None) -> str:
    """A folder's name, not its path, which says nothing to anyone else and perhaps too much."""
    if name is None:
        return "a model of its own"
    return (
        f"the local model `{Path(name).name}`" if Path(name).is_dir() else f"[{name}](https://huggingface.co/{name})"
    )


def evaluation_table(history: Iterable[Mapping[str, Any]]) -> str | None:
    """The last evaluation of each data set in a trainer's log, as a Markdown table; None if there was none."""
    latest: dict[str, Any] = {}
    for entry in history:
        latest |= entry
    lines = []
    for key in latest:
        if (match := _EVALUATED.fullmatch(key)) is not None:
            prefix = key.removesuffix("search_ratio")
            cells = [_cell(column, latest.get(prefix + column)) for column in _COLUMNS]
            lines.append(f"| {match['name'] or 'evaluation'} | {' | '.join(cells)} |")
    if not lines:
        return None
    heading = " | ".join(column.replace("_", " ") for column in _COLUMNS)
    return "\n".join([f"| data | {heading} |", f"|---|{'---|' * len(_COLUMNS)}", *lines])


def quick_start(model_id: str, facts: ModelFacts) -> str:
    """Python that loads the model and answers one question with it, searching as in training."""
    limits, images = facts.rollouter.limits, facts.sees_images
    search_images = isinstance(facts.protocol, MMSearchProtocol)
    imports, protocol = _protocol(facts.protocol)
    tools = bool(facts.protocol.tools)
    image = 'load_image("photo.jpg")'
    lines = [
        "import asyncio",
        "",
        "import torch",
        "from trl import ModelConfig",
        "",
        "from mmsearch_trl.recipe.build import build_engine, load_agent, load_processor",
        *(["from mmsearch_trl.data.images import resize_prompt_image"] if facts.resize_images and images else []),
        "from mmsearch_trl.core.task import Task",
        "from mmsearch_trl.core.completion import SamplingParams",
        "from mmsearch_trl.protocol.chat import ChatEncoder",
        *imports,
        f"from {type(limits).__module__} import {type(limits).__name__}",
        "from mmsearch_trl.rollout.loop import run_trajectory",
        *(["from mmsearch_trl.rollout.toolbox import Toolbox"] if tools else []),
        "from mmsearch_trl.search.config import SearchConfig",
        "from mmsearch_trl.search.factory import build_runtime",
        *(["from mmsearch_trl.search.image.index import ImageIndexConfig"] if search_images else []),
        *(["from mmsearch_trl.search.media.loading import load_image"] if images else []),
        "from mmsearch_trl.search.text.bm25 import BM25Config",
        "",
        f"config = ModelConfig(model_name_or_path={model_id!r}, dtype='auto')",
        "processor = load_processor(config)",
        "model = load_agent(config).to('cuda' if torch.cuda.is_available() else 'cpu').eval()",
        "",
        "# How the model was taught to search.",
        *protocol,
        f"limits = {_call(limits)}",
        "",
        "# Your own, made by `mmsearch index text PASSAGES --out text_index`, and `mmsearch index image`.",
        f"search = build_runtime({_search_config(_result_counts(facts), images=search_images)})",
        *(["search = Toolbox(search, protocol.tools)"] if tools else []),
        "",
        *(
            [
                f"image = {f'resize_prompt_image({image})' if facts.resize_images else image}",
                "task = Task(id='1', question='What is its name?', images=(image,))",
            ]
            if images
            else ["task = Task(id='1', question='Who wrote Moby-Dick?')"]
        ),
        "sampling = SamplingParams(max_tokens=limits.max_turn_tokens, temperature=0.0)",
        "engine = build_engine(model, chat)",
        "trajectory = asyncio.run(run_trajectory(task, engine, protocol, search, limits, sampling))",
        "engine.close()",
        "for turn in trajectory.turns:",
        "    print(turn.text)",
        "print('Answer:', trajectory.turns[-1].action.text)",
    ]
    return "\n".join(lines)


def _search_config(counts: Mapping[str, int], *, images: bool) -> str:
    """The call that makes the configuration of a search in the reader's own indexes."""
    backends = {"text": "BM25Config"} | ({"image": "ImageIndexConfig"} if images else {})
    top_k = {tool: f", top_k={counts[f'{tool}_top_k']}" if f"{tool}_top_k" in counts else "" for tool in backends}
    sections = [f"    {tool}={name}(path='{tool}_index'{top_k[tool]}),\n" for tool, name in backends.items()]
    return f"SearchConfig(\n{''.join(sections)})"


def _protocol(protocol: TurnProtocol) -> tuple[list[str], list[str]]:
    """The lines that import a protocol and those that make it; they cannot make one of the user's own."""
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


def _result_counts(facts: ModelFacts) -> dict[str, int]:
    search = facts.rollouter.tools
    if not isinstance(search, SearchRuntime):
        return {}
    tools = {"image_top_k": ActionKind.IMAGE_SEARCH, "text_top_k": ActionKind.TEXT_SEARCH}
    return {name: search.k[tool] for name, tool in tools.items() if _means_something(name, facts)}


def _settings(facts: ModelFacts) -> list[tuple[str, Any, str]]:
    """Name, value and meaning of what bounds a search."""
    known = [field for field in fields(Limits) if _means_something(field.name, facts)]
    rows = [(field.name, getattr(facts.rollouter.limits, field.name), str(field.metadata["help"])) for field in known]
    results = {"image_top_k": "Most results of an image search.", "text_top_k": "Most results of a text search."}
    return rows + [(name, value, results[name]) for name, value in _result_counts(facts).items()]


def _means_something(setting: str, facts: ModelFacts) -> bool:
    """Search-R1's protocol searches no images."""
    return not (setting.startswith("image_") and isinstance(facts.protocol, SearchR1Protocol))


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return "-"
    if column == "n":
        return str(int(value))
    return f"{value:.3f}" if column == "reward" else f"{value:.1%}"
