"""The README.md that travels with a model: what it is, how it searches, how good it is, and code that runs the search.

A search agent is more than its weights. Its quick start therefore holds the very prompts, wording and limits that the
model was trained with, where they are not the shipped ones; copied out and run, it carries out the loop of training.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from peft import PeftModel

from mmsearch_trl.core.redaction import redacted
from mmsearch_trl.hub.card_template import TEMPLATE
from mmsearch_trl.hub.facts import ModelFacts
from mmsearch_trl.hub.quick_start import quick_start
from mmsearch_trl.protocol.search_r1 import SearchR1Protocol
from mmsearch_trl.rewards.rule_reward import RuleReward
from mmsearch_trl.rollout.limits import Limits


_COLUMNS = ("n", "accuracy", "search_ratio", "image_ratio", "text_ratio", "format", "reward")
_EVALUATED = re.compile(r"eval(?:_(?P<name>[^/]+))?_n")
_LIBRARIES = ("mmsearch-trl", "trl", "transformers", "torch", "peft")


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
        direct=not facts.searches,
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
    """The last evaluation of each data set in a trainer's log, as a Markdown table; None if there was none.

    A number that no evaluation has, has no column.
    """
    latest: dict[str, Any] = {}
    for entry in history:
        latest |= entry
    evaluated = [match for key in latest if (match := _EVALUATED.fullmatch(key)) is not None]
    prefixes = {match[0].removesuffix("n"): match["name"] or "evaluation" for match in evaluated}
    columns = [column for column in _COLUMNS if any(prefix + column in latest for prefix in prefixes)]
    lines = []
    for prefix, name in prefixes.items():
        cells = [_cell(column, latest.get(prefix + column)) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if not lines:
        return None
    heading = " | ".join(column.replace("_", " ") for column in columns)
    return "\n".join([f"| data | {heading} |", f"|---|{'---|' * len(columns)}", *lines])


def _settings(facts: ModelFacts) -> list[tuple[str, Any, str]]:
    """Name, value and meaning of what bounds a search."""
    known = [field for field in fields(Limits) if facts.means_something(field.name)]
    rows = [(field.name, getattr(facts.rollouter.limits, field.name), str(field.metadata["help"])) for field in known]
    results = {"image_top_k": "Most results of an image search.", "text_top_k": "Most results of a text search."}
    return rows + [(name, value, results[name]) for name, value in facts.result_counts.items()]


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return "-"
    if column == "n":
        return str(int(value))
    return f"{value:.3f}" if column == "reward" else f"{value:.1%}"
