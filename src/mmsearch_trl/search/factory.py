"""Opens what the `search:` section of a recipe names; every complaint names its key.

One key chooses a backend; at most one may be chosen for each tool.
"""

import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.observation import ImageQuery
from mmsearch_trl.search.cache.store import ResultStore
from mmsearch_trl.search.calls.backend import SearchBackend
from mmsearch_trl.search.calls.backend_client import CallPolicy
from mmsearch_trl.search.calls.budget import Budget
from mmsearch_trl.search.config import SearchConfig
from mmsearch_trl.search.image.fvqa_cache import open_fvqa_cache
from mmsearch_trl.search.image.index import ImageIndex, load_encoder
from mmsearch_trl.search.image.serpapi_lens import SerpApiLens
from mmsearch_trl.search.image.service import ImageService
from mmsearch_trl.search.runtime import Mode, SearchRuntime
from mmsearch_trl.search.text.bm25 import TextIndex
from mmsearch_trl.search.text.ddgs_search import DdgsSearch
from mmsearch_trl.search.text.hybrid import Hybrid
from mmsearch_trl.search.text.mcp_tool import McpSearch
from mmsearch_trl.search.text.opensearch import OpenSearch
from mmsearch_trl.search.text.pages import PageSearch
from mmsearch_trl.search.text.qdrant import QdrantSearch
from mmsearch_trl.search.text.readers import JinaReader, Reader, WebReader
from mmsearch_trl.search.text.retriever import TOKEN_VARIABLE, Retriever
from mmsearch_trl.search.text.serpapi_google import SerpApiGoogle
from mmsearch_trl.search.text.summarisers import ChatSummariser, Excerpt
from mmsearch_trl.search.web.fetch import Fetcher
from mmsearch_trl.search.web.serpapi import SerpApi


Opener = Callable[[SearchConfig], Any]


def build_runtime(config: SearchConfig) -> SearchRuntime:
    """Open what `config` names.

    Raises:
        UserError: a key has an impossible value, or its path cannot be opened; names the key and the path.
    """
    config.check()
    with named("cache"):
        store = None if config.cache is None else _cache(config, config.cache)
    return SearchRuntime(
        open_image(config),
        open_text(config, store),
        k_image=config.image_top_k,
        k_text=config.text_top_k,
        image_policy=_policy(config, config.image_calls_per_second),
        text_policy=_policy(config, config.text_calls_per_second),
        thumbnail_side=config.thumbnail_side,
        budget=Budget(config.max_paid_calls),
        image_price=config.image_price_per_call,
        text_price=config.text_price_per_call,
        cache=store,
        mode=Mode(config.cache_mode),
    )


def open_image(config: SearchConfig) -> SearchBackend[ImageQuery] | None:
    """The backend of image searches, if one is named.

    Raises:
        UserError: names the key and what is wrong with its value.
    """
    config.check()
    return _open(config, _IMAGE)


def open_text(config: SearchConfig, cache: ResultStore | None) -> SearchBackend[str] | None:
    """The backend of text searches, if one is named.

    Args:
        cache: Where `text_pages` keeps what its stages gave.

    Raises:
        UserError: names the key and what is wrong with its value.
    """
    config.check()
    if config.text_index is not None and config.text_dense is not None:
        with named("text_index"):
            words = TextIndex.open(_there(config.text_index))
        with named("text_dense"):
            return Hybrid(words, _dense(config))
    return _open(config, _TEXT | {"text_pages": lambda config: _pages(config, cache)})


def _cache(config: SearchConfig, path: str) -> ResultStore:
    most = None if config.cache_max_mb is None else int(1e6 * config.cache_max_mb)
    return ResultStore(path, max_bytes=most, empty_lifetime_s=3600 * config.cache_empty_hours)


def _policy(config: SearchConfig, calls_per_second: float | None) -> CallPolicy:
    return CallPolicy(
        timeout_s=config.timeout_s,
        try_timeout_s=config.try_timeout_s,
        retries=config.retries,
        max_concurrency=config.max_concurrency,
        calls_per_second=calls_per_second,
    )


def _open(config: SearchConfig, openers: Mapping[str, Opener]) -> Any:
    chosen = [key for key in openers if getattr(config, key) not in (None, False)]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(f'search.{key}' for key in chosen)} are set: keep one of them")
    for key in chosen:
        with named(key):
            return openers[key](config)
    return None


def _image_index(config: SearchConfig) -> ImageIndex:
    with named("image_encoder"):
        encoder = None if config.image_encoder is None else load_encoder(config.image_encoder)
    return ImageIndex.open(_there(config.image_index), encoder)


def _dense(config: SearchConfig) -> SearchBackend[str]:
    from mmsearch_trl.search.text.dense import DenseIndex  # torch is imported only where an encoder is asked for

    return DenseIndex.open(_there(config.text_dense), config.text_encoder)


def _qdrant(config: SearchConfig) -> QdrantSearch:
    from mmsearch_trl.search.text.encoder import TextEncoder

    with named("text_encoder"):
        encoder = TextEncoder(str(config.text_encoder))
    return QdrantSearch(str(config.text_qdrant), str(config.qdrant_collection), encoder, corpus=config.corpus)


def _pages(config: SearchConfig, cache: ResultStore | None) -> PageSearch:
    links: Any = SerpApiGoogle(SerpApi()) if config.text_pages == "serpapi" else DdgsSearch()
    reader: Reader = JinaReader() if config.page_reader == "jina" else _web_reader(config)
    if config.summariser_url is None or config.summariser_model is None:
        return PageSearch(links, reader, Excerpt(), cache=cache)
    return PageSearch(links, reader, ChatSummariser(config.summariser_url, config.summariser_model), cache=cache)


def _web_reader(config: SearchConfig) -> WebReader:
    from mmsearch_trl.search.web.page_text import PageReader

    return WebReader(_fetcher(config), PageReader())


def _fetcher(config: SearchConfig) -> Fetcher:
    return Fetcher(denied_hosts=config.denied_hosts)


def _mcp(config: SearchConfig) -> McpSearch:
    assert config.text_mcp is not None and config.mcp_tool is not None
    is_address = config.text_mcp.startswith(("http://", "https://"))
    server = config.text_mcp if is_address else shlex.split(config.text_mcp)
    return McpSearch(server, config.mcp_tool, argument=config.mcp_argument, environment=config.mcp_environment)


_IMAGE: dict[str, Opener] = {
    "image_index": _image_index,
    "image_cache": lambda config: open_fvqa_cache(_there(config.image_cache)),
    "image_service": lambda config: ImageService(
        str(config.image_service), token=os.environ.get(TOKEN_VARIABLE), corpus=config.corpus
    ),
    "image_serpapi": lambda config: SerpApiLens(SerpApi(), _fetcher(config)),
}
_TEXT: dict[str, Opener] = {
    "text_index": lambda config: TextIndex.open(_there(config.text_index)),
    "text_dense": _dense,
    "text_retriever": lambda config: Retriever(
        str(config.text_retriever), token=os.environ.get(TOKEN_VARIABLE), corpus=config.corpus
    ),
    "text_qdrant": _qdrant,
    "text_opensearch": lambda config: OpenSearch(
        str(config.text_opensearch), str(config.opensearch_index), corpus=config.corpus
    ),
    "text_serpapi": lambda config: SerpApiGoogle(SerpApi()),
    "text_ddgs": lambda config: DdgsSearch(),
    "text_mcp": _mcp,
}


def _there(path: str | None) -> str:
    if path is None or not Path(path).exists():
        raise UserError(f"{path} does not exist")
    return path


@contextmanager
def named(key: str) -> Iterator[None]:
    """Puts the recipe key before whatever is wrong with its value."""
    try:
        yield
    except (ValueError, ImportError) as error:
        message = str(error)
        raise UserError(message if message.startswith("search.") else f"search.{key}: {message}") from error
