"""The `search:` section of a recipe."""

from dataclasses import dataclass, field
from typing import Literal

from mmsearch_trl.core.errors import UserError


_POSITIVE = (
    *("image_top_k", "text_top_k", "timeout_s", "try_timeout_s", "max_concurrency", "thumbnail_side"),
    *("image_calls_per_second", "text_calls_per_second", "cache_max_mb", "cache_empty_hours"),
)

IMAGE_SOURCES = ("image_index", "image_cache", "image_service", "image_serpapi")
"""Keys that choose what answers image searches."""
TEXT_SOURCES = (
    *("text_index", "text_dense", "text_retriever", "text_qdrant", "text_opensearch", "text_serpapi", "text_ddgs"),
    *("text_pages", "text_mcp"),
)
"""Keys that choose what answers text searches."""


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
            "a folder of <data_id>/meta.json, or the .json file of DeepEyesV2)."
        },
    )
    image_service: str | None = field(
        default=None,
        metadata={
            "help": "Image search, instead: address of a server with `/image_search`, such as `mmsearch serve "
            "images`. A token it wants is in MMSEARCH_RETRIEVER_TOKEN."
        },
    )
    image_serpapi: bool = field(
        default=False,
        metadata={"help": "Image search, instead: Google Lens through SerpApi. Paid; the key is in SERPAPI_API_KEY."},
    )
    text_index: str | None = field(
        default=None, metadata={"help": "Text search: folder made by `mmsearch index text`."}
    )
    text_dense: str | None = field(
        default=None,
        metadata={
            "help": "Text search, instead: folder made by `mmsearch index dense`. With `text_index` as well, the two "
            "rankings are joined."
        },
    )
    text_encoder: str | None = field(
        default=None,
        metadata={
            "help": "Encoder of `text_dense`, where it is not at the place the index remembers; that of `text_qdrant`."
        },
    )
    text_retriever: str | None = field(
        default=None,
        metadata={
            "help": "Text search, instead: address of a server with Search-R1's `/retrieve`, such as `mmsearch serve "
            "retriever`. A token it wants is in MMSEARCH_RETRIEVER_TOKEN."
        },
    )
    text_qdrant: str | None = field(
        default=None,
        metadata={
            "help": "Text search, instead: address of a Qdrant server, http://HOST:6333, or folder of an embedded "
            "one; vectors are those of `text_encoder`. A key that a server wants is in QDRANT_API_KEY."
        },
    )
    qdrant_collection: str | None = field(default=None, metadata={"help": "The collection there."})
    text_opensearch: str | None = field(
        default=None,
        metadata={
            "help": "Text search, instead: address of an OpenSearch server, http://HOST:9200, by words (BM25). What "
            "it wants is in OPENSEARCH_TOKEN, or OPENSEARCH_USER and OPENSEARCH_PASSWORD."
        },
    )
    opensearch_index: str | None = field(default=None, metadata={"help": "The index there."})
    corpus: str = field(
        default="",
        metadata={
            "help": "Name of what a retriever, an image service, Qdrant or OpenSearch serves: another name, other "
            "cached results."
        },
    )
    text_serpapi: bool = field(
        default=False,
        metadata={"help": "Text search, instead: Google's titles and snippets through SerpApi. Paid."},
    )
    text_ddgs: bool = field(
        default=False,
        metadata={"help": "Text search, instead: public search engines through `ddgs`. Free, and not reliable."},
    )
    text_pages: Literal["serpapi", "ddgs"] | None = field(
        default=None,
        metadata={
            "help": "Text search, instead, as MMSearch-R1 has it: pages are searched with this, read, and summarised."
        },
    )
    page_reader: Literal["web", "jina"] = field(
        default="web",
        metadata={"help": "What reads pages: web, this machine; jina, Jina Reader (its key is in JINA_API_KEY)."},
    )
    summariser_url: str | None = field(
        default=None,
        metadata={
            "help": "Address of an OpenAI-compatible endpoint that summarises pages; default: the sentences that fit "
            "the query best. A key it wants is in OPENAI_API_KEY."
        },
    )
    summariser_model: str | None = field(default=None, metadata={"help": "The model there."})
    text_mcp: str | None = field(
        default=None,
        metadata={"help": "Text search, instead: address of an MCP server, or the command that starts one."},
    )
    mcp_tool: str | None = field(default=None, metadata={"help": "The server's tool that searches."})
    mcp_argument: str = field(default="query", metadata={"help": "The tool's argument for the query."})
    mcp_environment: list[str] = field(
        default_factory=list, metadata={"help": "Variables that a server which is started may see, for its keys."}
    )
    denied_hosts: list[str] = field(
        default_factory=list,
        metadata={"help": "Hosts from which nothing is fetched: where a benchmark's answers lie."},
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
    max_paid_calls: int | None = field(
        default=None,
        metadata={"help": "Calls to paid services, per process, after which the run is saved and ends; default: any."},
    )
    image_price_per_call: float = field(
        default=0.0,
        metadata={
            "help": "Dollars that an image search by a paid service costs, by your plan, for the estimate of what a "
            "run costs; default: not known."
        },
    )
    text_price_per_call: float = field(
        default=0.0,
        metadata={"help": "Likewise of a text search; readers and summarisers of `text_pages` are not counted."},
    )
    cache: str | None = field(
        default=None,
        metadata={"help": "SQLite file (on a local disk) in which answers are kept over runs; default: none."},
    )
    cache_max_mb: float | None = field(
        default=None, metadata={"help": "Largest size of the cached results, megabytes; the oldest make room."}
    )
    cache_empty_hours: float = field(
        default=24.0, metadata={"help": 'Hours for which "searched and found nothing" is kept.'}
    )
    cache_mode: Literal["live", "record", "replay"] = field(
        default="live",
        metadata={
            "help": "live: cached results save searches. record: every search is made and its answer kept anew. "
            "replay: nothing is searched; what is not kept is a failure."
        },
    )

    def check(self) -> None:
        """
        Raises:
            UserError: a number is out of range, or keys contradict each other; names the keys.
        """
        for key in _POSITIVE:
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise UserError(f"search.{key} is {value}: it must be greater than 0")
        for key in ("retries", "max_paid_calls", "image_price_per_call", "text_price_per_call"):
            if (getattr(self, key) or 0) < 0:
                raise UserError(f"search.{key} is {getattr(self, key)}: it must be 0 or more")
        if self.cache is None and self.cache_mode != "live":
            raise UserError(
                f"search.cache_mode is {self.cache_mode!r}, and search.cache, which it is about, is not set"
            )
        if self.image_encoder is not None and self.image_index is None:
            raise UserError("search.image_encoder is the model of an image index, and search.image_index is not set")
        if self.text_encoder is not None and self.text_dense is None and self.text_qdrant is None:
            raise UserError(
                "search.text_encoder is the model of vectors, and neither search.text_dense nor search.text_qdrant is "
                "set"
            )
        if self.text_qdrant is not None and self.text_encoder is None:
            raise UserError(
                "search.text_qdrant needs search.text_encoder, the model that made the collection's vectors"
            )
        if (self.qdrant_collection is None) != (self.text_qdrant is None):
            raise UserError("search.text_qdrant and search.qdrant_collection go together: set both, or none")
        if (self.opensearch_index is None) != (self.text_opensearch is None):
            raise UserError("search.text_opensearch and search.opensearch_index go together: set both, or none")
        if (self.mcp_tool is None) != (self.text_mcp is None):
            raise UserError("search.text_mcp names a server and search.mcp_tool its tool: set both of them, or none")
        if (self.summariser_url is None) != (self.summariser_model is None):
            raise UserError("search.summariser_url and search.summariser_model go together: set both, or none")
