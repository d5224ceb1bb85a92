"""The runtime that the `search:` section of a recipe describes; every message names its key."""

from mmsearch_trl.search.cache.store import ResultStore
from mmsearch_trl.search.calls.backend_client import CallPolicy
from mmsearch_trl.search.calls.budget import Budget
from mmsearch_trl.search.calls.section import BackendConfig, ImageConfig, Shared, TextConfig, named, open_backend
from mmsearch_trl.search.config import SearchConfig
from mmsearch_trl.search.runtime import Mode, SearchRuntime


def build_runtime(config: SearchConfig) -> SearchRuntime:
    """Open what `config` names.

    Raises:
        UserError: something that a key names cannot be opened; names the key and what is wrong with its value.
    """
    store = None
    if config.cache is not None:
        most = None if config.cache_max_mb is None else int(1e6 * config.cache_max_mb)
        with named("search.cache"):
            store = ResultStore(config.cache, max_bytes=most, empty_lifetime_s=3600 * config.cache_empty_hours)
    shared = Shared(denied_hosts=config.denied_hosts, store=store)
    image, text = config.image, config.text
    return SearchRuntime(
        None if image is None else open_backend(image, shared),
        None if text is None else open_backend(text, shared),
        k_image=ImageConfig.top_k if image is None else image.top_k,
        k_text=TextConfig.top_k if text is None else text.top_k,
        image_policy=_policy(config, image),
        text_policy=_policy(config, text),
        thumbnail_side=config.thumbnail_side,
        budget=Budget(config.max_paid_calls),
        image_price=0.0 if image is None else image.price_per_call,
        text_price=0.0 if text is None else text.price_per_call,
        cache=store,
        mode=Mode(config.cache_mode),
    )


def _policy(config: SearchConfig, section: BackendConfig | None) -> CallPolicy:
    return CallPolicy(
        timeout_s=config.timeout_s,
        try_timeout_s=config.try_timeout_s,
        retries=config.retries,
        max_concurrency=config.max_concurrency,
        calls_per_second=None if section is None else section.calls_per_second,
    )
