"""What a text encoder says of itself: how a vector is made of its last hidden states, and what goes before a text.

A model in the layout of sentence-transformers says it in files beside its weights: `modules.json` names the steps
after the transformer (pooling, linear layers, normalising), each with a `config.json` of its own, and
`config_sentence_transformers.json` the prompts of questions and passages. What a folder is called says nothing. A step
that is not known here is refused: a vector that is made otherwise than in training is searched wrongly without a word.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from mmsearch_trl.core.boundaries import loading, reading
from mmsearch_trl.core.errors import UserError


logger = logging.getLogger(__name__)

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""How a pooling is written in most models, in the order in which several are joined."""
_QUERY_PROMPTS = ("query", "search_query", "s2p_query", "web_search_query", "retrieval.query")
_PASSAGE_PROMPTS = ("document", "passage", "corpus", "search_document", "retrieval.passage")

_PROMPTS_ON_THE_HUB = (
    (r"intfloat/(multilingual-)?e5-(small|base|large)(-v2|-unsupervised)?", ("query: ", "passage: ")),
    (
        r"BAAI/bge-(small|base|large)-en(-v1\.5)?",
        ("Represent this sentence for searching relevant passages: ", ""),
    ),
    (r"BAAI/bge-(small|base|large)-zh(-v1\.5)?", ("为这个句子生成表示以用于检索相关文章：", "")),  # noqa: RUF001
)
"""Prompts of released models which say them in their descriptions alone; by the whole name on the Hub."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderRecipe:
    """How an encoder's vectors are made.

    Attributes:
        query: What goes before a question.
        passage: What goes before a passage.
        poolings: Ways in which the hidden states of a text become one vector; several are joined.
        pools_prompt: Whether the words before a text take part in that.
        layers: Folders of linear layers that the vector then passes, in order.
        normalised: Whether it is brought to length one.
        max_tokens: Longest text; None where the model does not say.
        lower_case: Whether texts are brought to lower case.
    """

    query: str = ""
    passage: str = ""
    poolings: tuple[str, ...] = ("mean",)
    pools_prompt: bool = True
    layers: tuple[str, ...] = ()
    normalised: bool = True
    max_tokens: int | None = None
    lower_case: bool = False

    def mark(self) -> str:
        """Tells recipes apart, in a fingerprint; the mean of a plain encoder is not mentioned."""
        plain = EncoderRecipe(query=self.query, passage=self.passage)
        # Texts are cut at 512 tokens in any case.
        same = replace(self, max_tokens=None) if (self.max_tokens or 512) >= 512 else self
        return f"{self.query}{self.passage}" + ("" if same == plain else f"-{same}")


def read_recipe(model: str | Path, query: str | None = None, passage: str | None = None) -> EncoderRecipe:
    """The recipe of a model in a folder or on the Hub.

    Args:
        query: What goes before a question, in place of what the model says.
        passage: Likewise before a passage.

    Raises:
        UserError: the model's files are damaged, or name a step that is not known here.
    """
    modules = _json(model, "modules.json")
    settings = model_object(model, "config_sentence_transformers.json")
    recipe = _steps(model, modules, settings) if modules is not None else EncoderRecipe()
    prompts = _prompts(str(model), settings.get("prompts"))
    if modules is None and prompts is None and query is None and passage is None:
        logger.warning(
            "%s does not say how its vectors are made (it has no modules.json): the mean of its last states is taken, "
            "and nothing is put before questions and passages",
            model,
        )
    own_query, own_passage = prompts or ("", "")
    return replace(
        recipe, query=own_query if query is None else query, passage=own_passage if passage is None else passage
    )


def _steps(model: str | Path, modules: Any, settings: Mapping[str, Any]) -> EncoderRecipe:
    try:
        steps = [(str(step["type"]).rpartition(".")[2], str(step["path"])) for step in modules]
    except (TypeError, KeyError) as error:
        raise UserError(f"{model}: modules.json is no list of steps") from error
    if not steps or steps[0][0] != "Transformer":
        raise _unknown(model, steps[0][0] if steps else "nothing")
    transformer = model_object(model, f"{steps[0][1]}/sentence_bert_config.json".lstrip("/"))
    similarity = settings.get("similarity_fn_name") or "cosine"
    recipe = EncoderRecipe(
        normalised=similarity == "cosine",
        max_tokens=transformer.get("max_seq_length"),
        lower_case=bool(transformer.get("do_lower_case")),
    )
    for kind, path in steps[1:]:
        if kind == "Pooling":
            recipe = _pooling(model, path, recipe)
        elif kind == "Dense":
            recipe = replace(recipe, layers=(*recipe.layers, path))
        elif kind == "Normalize":
            recipe = replace(recipe, normalised=True)
        elif kind != "Dropout":  # which does nothing outside of training
            raise _unknown(model, kind)
    if not recipe.normalised and similarity not in ("dot", "dot_product"):
        raise _unknown(model, f"a comparison by {similarity!r}")
    return recipe


def _pooling(model: str | Path, path: str, recipe: EncoderRecipe) -> EncoderRecipe:
    config = model_object(model, f"{path}/config.json")
    named = config.get("pooling_mode") or [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
    poolings = tuple([named] if isinstance(named, str) else named)
    for pooling in poolings:
        if pooling not in POOLINGS:
            raise _unknown(model, f"pooling {pooling!r}")
    return replace(recipe, poolings=poolings, pools_prompt=bool(config.get("include_prompt", True)))


def _prompts(model: str, prompts: Any) -> tuple[str, str] | None:
    """What goes before questions and passages; None where nothing says it."""
    if not isinstance(prompts, dict) or not any(prompts.values()):
        released = (both for name, both in _PROMPTS_ON_THE_HUB if re.fullmatch(name, model))
        return next(released, None)
    query, passage = (_first(prompts, names) for names in (_QUERY_PROMPTS, _PASSAGE_PROMPTS))
    if query is None and passage is None:
        shown = ", ".join(map(repr, list(prompts)[:8]))
        logger.warning(
            "%s has prompts (%s) and none of them is for questions or passages: none is used; name what goes before "
            "them, such as by --query_prefix",
            model,
            shown,
        )
    return query or "", passage or ""


def _first(prompts: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((prompts[name] for name in names if isinstance(prompts.get(name), str)), None)


def _unknown(model: str | Path, what: str) -> UserError:
    return UserError(f"the text encoder {str(model)!r} makes its vectors by {what}, which is not known here")


def model_object(model: str | Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of a model; an empty one where there is no such file.

    Raises:
        UserError: it cannot be read, or is no object.
    """
    values = _json(model, name)
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{model}: {name} is no object")
    return values or {}


def _json(model: str | Path, name: str) -> Any:
    """What a file of the model holds; None where there is none.

    Raises:
        UserError: it cannot be read.
    """
    path = model_file(model, name)
    if path is None:
        return None
    with reading(path):
        text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{model}: {name} is no JSON: {error}") from error


def model_file(model: str | Path, name: str) -> Path | None:
    """Where a file of a model lies, fetched from the Hub where it has to be; None where there is none.

    Raises:
        UserError: it cannot be had, or not be told whether there is one.
    """
    if Path(model).is_dir():
        return Path(model, name) if Path(model, name).is_file() else None
    with loading("the text encoder", model):
        found = cached_file(str(model), name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)
