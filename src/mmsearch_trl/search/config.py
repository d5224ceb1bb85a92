"""The `search:` section of a recipe: what answers each tool, and what both share.

    search:
      image: {backend: index, path: indexes/pages, top_k: 5}
      text: {backend: bm25, path: indexes/passages, top_k: 3}
      timeout_s: 20

`backend` says whose keys the others are; each backend's lie beside it, and `imported.py` takes a user's own.
"""

from dataclasses import dataclass, field
from typing import Literal

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.search.image.fvqa_cache import FvqaCacheConfig
from mmsearch_trl.search.image.index import ImageIndexConfig
from mmsearch_trl.search.image.serpapi_lens import SerpApiLensConfig
from mmsearch_trl.search.image.service import ImageServiceConfig
from mmsearch_trl.search.imported import ImportedImageConfig, ImportedTextConfig
from mmsearch_trl.search.text.bm25 import BM25Config
from mmsearch_trl.search.text.ddgs_search import DdgsConfig
from mmsearch_trl.search.text.dense_config import DenseConfig
from mmsearch_trl.search.text.hybrid import HybridConfig
from mmsearch_trl.search.text.mcp_tool import McpConfig
from mmsearch_trl.search.text.opensearch import OpenSearchConfig
from mmsearch_trl.search.text.pages import PagesConfig
from mmsearch_trl.search.text.qdrant import QdrantConfig
from mmsearch_trl.search.text.retriever import RetrieverConfig
from mmsearch_trl.search.text.serpapi_google import SerpApiGoogleConfig
from mmsearch_trl.search.web.address_rules import AddressRules


ImageSection = ImageIndexConfig | FvqaCacheConfig | ImageServiceConfig | SerpApiLensConfig | ImportedImageConfig
TextSection = (
    BM25Config
    | DenseConfig
    | HybridConfig
    | RetrieverConfig
    | QdrantConfig
    | OpenSearchConfig
    | SerpApiGoogleConfig
    | DdgsConfig
    | PagesConfig
    | McpConfig
    | ImportedTextConfig
)

_POSITIVE = ("timeout_s", "try_timeout_s", "max_concurrency", "thumbnail_side", "cache_max_mb", "cache_empty_hours")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Where searches are answered from, and how long they may take.

    Raises:
        UserError: a number is out of range, or keys contradict each other; names the keys.
    """

    image: ImageSection | None = field(
        default=None, metadata={"help": "What answers image searches: a mapping with `backend`; default: nothing."}
    )
    text: TextSection | None = field(
        default=None, metadata={"help": "What answers text searches: a mapping with `backend`; default: nothing."}
    )
    timeout_s: float = field(default=20.0, metadata={"help": "Seconds after which a search is a failure."})
    try_timeout_s: float = field(default=10.0, metadata={"help": "Seconds after which one try of it is."})
    retries: int = field(
        default=2, metadata={"help": "Further tries within `timeout_s`, after a failure that may pass."}
    )
    max_concurrency: int = field(
        default=64, metadata={"help": "Searches of either kind running at a time, per process."}
    )
    max_paid_calls: int | None = field(
        default=None,
        metadata={"help": "Calls to paid services, per process, after which the run is saved and ends; default: any."},
    )
    thumbnail_side: int | None = field(
        default=None, metadata={"help": "Pixels to which the longer side of larger tool images is brought."}
    )
    denied_hosts: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Hosts from which nothing is fetched, with all below them: where a benchmark's answers lie. "
            "Scheme, port, path and `*.` of an entry mean nothing."
        },
    )
    cache: str | None = field(
        default=None,
        metadata={"help": "SQLite file (on a local disk) in which results are cached over runs; default: none."},
    )
    cache_max_mb: float | None = field(
        default=None, metadata={"help": "Largest size of the cached results, megabytes; the oldest make room."}
    )
    cache_empty_hours: float = field(
        default=24.0, metadata={"help": 'Hours for which "searched and found nothing" is cached.'}
    )
    cache_mode: Literal["live", "record", "replay"] = field(
        default="live",
        metadata={
            "help": "live: cached results save searches. record: every search is made and its result cached anew. "
            "replay: nothing is searched; what is not cached is a failure."
        },
    )

    def __post_init__(self) -> None:
        for key in _POSITIVE:
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise UserError(f"search.{key} is {value}: it must be greater than 0")
        for key in ("retries", "max_paid_calls"):
            if (getattr(self, key) or 0) < 0:
                raise UserError(f"search.{key} is {getattr(self, key)}: it must be 0 or more")
        AddressRules(self.denied_hosts)  # names an entry that is no host
        if self.cache is None and self.cache_mode != "live":
            raise UserError(
                f"search.cache_mode is {self.cache_mode!r}, and search.cache, which it is about, is not set"
            )
