"""The `search:` section of a recipe, and the runtime it describes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmsearch_trl.search.asking import CallPolicy
from mmsearch_trl.search.image.fvqa_cache import open_fvqa_cache
from mmsearch_trl.search.image.index import ImageIndex, load_encoder
from mmsearch_trl.search.runtime import Mode, SearchRuntime
from mmsearch_trl.search.store import AnswerStore
from mmsearch_trl.search.text.bm25 import TextIndex
from mmsearch_trl.search.types import ImageQuery, SearchBackend


@dataclass(kw_only=True)
class SearchConfig:
    """Where searches are answered from, and how long they may take."""

    image_index: str | None = field(
        default=None, metadata={"help": "Image search: folder made by `mmsearch index image`, searched by pixels."}
    )
    image_encoder: str | None = field(
        default=None,
        metadata={"help": "Vision model of `image_index`, where it is not at the place the index remembers."},
    )
    image_cache: str | None = field(
        default=None,
        metadata={
            "help": "Image search, instead of `image_index`: a published FVQA cache (a pickle, a folder of pickles, "
            "or a folder of <data_id>/meta.json)."
        },
    )
    text_index: str | None = field(
        default=None, metadata={"help": "Text search: folder made by `mmsearch index text`."}
    )
    image_top_k: int = field(default=5, metadata={"help": "Most results of an image search."})
    text_top_k: int = field(default=3, metadata={"help": "Most results of a text search."})
    timeout_s: float = field(default=20.0, metadata={"help": "Seconds after which a search is a failure."})
    try_timeout_s: float = field(default=10.0, metadata={"help": "Seconds after which one try of it is."})
    retries: int = field(
        default=2, metadata={"help": "Further tries within `timeout_s`, after a failure that may pass."}
    )
    thumbnail_side: int | None = field(
        default=None, metadata={"help": "Pixels to which the longer side of larger tool images is brought."}
    )
    max_concurrency: int = field(
        default=64, metadata={"help": "Searches of either kind running at a time, per process."}
    )
    image_calls_per_second: float | None = field(
        default=None, metadata={"help": "Image searches begun a second, per process; default: any number."}
    )
    text_calls_per_second: float | None = field(
        default=None, metadata={"help": "Text searches begun a second, per process; default: any number."}
    )
    cache: str | None = field(
        default=None,
        metadata={"help": "SQLite file (on a local disk) in which answers are kept over runs; default: none."},
    )
    cache_mode: Literal["live", "record", "replay"] = field(
        default="live",
        metadata={
            "help": "live: kept answers save searches. record: every search is made and its answer kept anew. "
            "replay: nothing is searched; what is not kept is a failure."
        },
    )


_POSITIVE = (
    *("image_top_k", "text_top_k", "timeout_s", "try_timeout_s", "max_concurrency", "thumbnail_side"),
    *("image_calls_per_second", "text_calls_per_second"),
)


def build_runtime(config: SearchConfig) -> SearchRuntime:
    """Open what `config` names.

    Raises:
        ValueError: a key has an impossible value, or its path cannot be opened; names the key and the path.
    """
    for key in _POSITIVE:
        value = getattr(config, key)
        if value is not None and value <= 0:
            raise ValueError(f"search.{key} is {value}: it must be greater than 0")
    if config.retries < 0:
        raise ValueError(f"search.retries is {config.retries}: it must be 0 or more")
    if config.cache is None and config.cache_mode != "live":
        raise ValueError(
            f"search.cache_mode is {config.cache_mode!r}, and search.cache, which it is about, is not set"
        )
    with _named("text_index", config.text_index):
        text = None if config.text_index is None else TextIndex.open(config.text_index)
    image = _open_image(config)
    with _named("cache", None):
        store = None if config.cache is None else AnswerStore(config.cache)
    return SearchRuntime(
        image,
        text,
        k_image=config.image_top_k,
        k_text=config.text_top_k,
        image_policy=_policy(config, config.image_calls_per_second),
        text_policy=_policy(config, config.text_calls_per_second),
        thumbnail_side=config.thumbnail_side,
        cache=store,
        mode=Mode(config.cache_mode),
    )


def _policy(config: SearchConfig, calls_per_second: float | None) -> CallPolicy:
    return CallPolicy(
        timeout_s=config.timeout_s,
        try_timeout_s=config.try_timeout_s,
        retries=config.retries,
        max_concurrency=config.max_concurrency,
        calls_per_second=calls_per_second,
    )


def _open_image(config: SearchConfig) -> SearchBackend[ImageQuery] | None:
    if config.image_index is not None and config.image_cache is not None:
        raise ValueError("search.image_index and search.image_cache are both set: keep one of them")
    if config.image_encoder is not None and config.image_index is None:
        raise ValueError("search.image_encoder is the model of an image index, and search.image_index is not set")
    with _named("image_cache", config.image_cache):
        if config.image_cache is not None:
            return open_fvqa_cache(config.image_cache)
    with _named("image_encoder", None):
        encoder = None if config.image_encoder is None else load_encoder(config.image_encoder)
    with _named("image_index", config.image_index):
        return None if config.image_index is None else ImageIndex.open(config.image_index, encoder)


@contextmanager
def _named(key: str, path: str | None) -> Iterator[None]:
    """Puts the recipe key before whatever is wrong with its value; a given path must exist."""
    if path is not None and not Path(path).exists():
        raise ValueError(f"search.{key}: {path} does not exist")
    try:
        yield
    except ValueError as error:
        raise ValueError(f"search.{key}: {error}") from error
