"""The `search:` section: what each backend wants, and what is told where it does not get it."""

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image

from mmsearch_trl.core.errors import SearchLost, UserError
from mmsearch_trl.core.observation import FailureKind, ImageHit, ImageQuery, Observation, TextHit
from mmsearch_trl.recipe.validation import build
from mmsearch_trl.search.calls.section import ImageConfig, TextConfig, open_backend
from mmsearch_trl.search.config import ImageSection, SearchConfig, TextSection
from mmsearch_trl.search.factory import build_runtime
from mmsearch_trl.search.image.fvqa_cache import FvqaCacheConfig
from mmsearch_trl.search.image.index import ImageIndexConfig
from mmsearch_trl.search.image.serpapi_lens import SerpApiLensConfig
from mmsearch_trl.search.image.service import ImageServiceConfig
from mmsearch_trl.search.index_build import build_image_index, build_text_index
from mmsearch_trl.search.runtime import SearchRuntime
from mmsearch_trl.search.text.bm25 import BM25Config
from mmsearch_trl.search.text.ddgs_search import DdgsConfig
from mmsearch_trl.search.text.dense_config import DenseConfig
from mmsearch_trl.search.text.hybrid import HybridConfig
from mmsearch_trl.search.text.mcp_tool import McpConfig
from mmsearch_trl.search.text.pages import PagesConfig
from mmsearch_trl.search.text.retriever import RetrieverConfig
from mmsearch_trl.search.text.serpapi_google import SerpApiGoogleConfig


@pytest.fixture
def indexes(emblem: Callable[..., Image.Image], tmp_path: Path) -> tuple[str, str]:
    """An image index and a text index."""
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        emblem(number).save(tmp_path / "pictures" / f"{number}.png")
    rows = [{"title": f"Emblem {number}", "text": f"The emblem {number} of Calton."} for number in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    image, text = str(tmp_path / "image"), str(tmp_path / "text")
    build_image_index(tmp_path / "pictures", image, progress=False)
    build_text_index(tmp_path / "rows.jsonl", text, progress=False)
    return image, text


@pytest.mark.parametrize("section", [SearchConfig, *get_args(ImageSection), *get_args(TextSection)])
def test_every_key_has_a_help_text(section: Any) -> None:
    assert [key.name for key in fields(section) if not key.metadata.get("help")] == []


@pytest.mark.parametrize(("union", "base"), [(ImageSection, ImageConfig), (TextSection, TextConfig)])
def test_a_backend_has_a_name_of_its_own(union: Any, base: type) -> None:
    assert all(issubclass(section, base) for section in get_args(union))
    names = [getattr(section, "backend", "a user's own") for section in get_args(union)]
    assert len(names) == len(set(names))


async def both(runtime: SearchRuntime, image: ImageQuery, text: str) -> tuple[Observation, Observation]:
    return await runtime.image_search(image), await runtime.text_search(text)


def test_a_recipe_searches_both_indexes_and_keeps_the_answers(
    indexes: tuple[str, str], emblem: Callable[..., Image.Image], tmp_path: Path
) -> None:
    image_section, text_section = ImageIndexConfig(path=indexes[0], top_k=2), BM25Config(path=indexes[1], top_k=1)
    config = SearchConfig(image=image_section, text=text_section, cache=str(tmp_path / "cache.sqlite"))
    for cached in (False, True):
        runtime = build_runtime(config)
        query = ImageQuery(emblem(3, 56, (1, 1)), data_id=str(cached))
        image, text = asyncio.run(both(runtime, query, "emblem 2"))
        runtime.close()
        assert image.failure is text.failure is None
        assert (image.cached, text.cached) == (cached, cached)
        assert isinstance(image.hits[0], ImageHit) and image.hits[0].title == "3" and len(image.hits) == 2
        assert isinstance(text.hits[0], TextHit) and text.hits[0].title == "Emblem 2" and len(text.hits) == 1


def test_a_published_cache_is_opened_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "fvqa_train_cache" / "fvqa_train_1").mkdir(parents=True)
    (tmp_path / "fvqa_train_cache" / "fvqa_train_1" / "meta.json").write_text('{"title_list": ["a"]}')
    runtime = build_runtime(SearchConfig(image=FvqaCacheConfig(path=str(tmp_path))))
    query = ImageQuery(Image.new("RGB", (4, 4)), data_id="fvqa_train_1")
    image, text = asyncio.run(both(runtime, query, "who?"))
    assert image.hits == (ImageHit("a"),)
    assert text.failure is not None and text.failure.kind is FailureKind.INVALID_QUERY


@pytest.mark.parametrize("section", [ImageIndexConfig, FvqaCacheConfig, BM25Config, DenseConfig])
def test_a_missing_path_is_named_with_its_key(section: Any) -> None:
    with pytest.raises(UserError, match=rf"{section.section}\.path: /nowhere/at/all does not exist"):
        open_backend(section(path="/nowhere/at/all"))


def test_a_missing_path_of_two_is_named_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"search\.text\.dense: /nowhere does not exist"):
        open_backend(HybridConfig(bm25=str(tmp_path), dense="/nowhere"))


@pytest.mark.parametrize("section", [ImageIndexConfig, FvqaCacheConfig, BM25Config])
def test_a_folder_of_something_else_is_named_with_its_key(section: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{section.section}\.path: {tmp_path} "):
        open_backend(section(path=str(tmp_path)))


@pytest.mark.parametrize("key", ["timeout_s", "try_timeout_s", "thumbnail_side", "cache_max_mb"])
def test_a_number_must_be_greater_than_zero(key: str) -> None:
    values: Any = {key: 0}
    with pytest.raises(UserError, match=rf"search\.{key} is 0: it must be greater than 0"):
        SearchConfig(**values)


@pytest.mark.parametrize("key", ["top_k", "calls_per_second"])
def test_a_number_of_a_section_must_be_greater_than_zero(key: str) -> None:
    values: Any = {key: 0}
    with pytest.raises(UserError, match=rf"search\.text\.{key} is 0: it must be greater than 0"):
        DdgsConfig(**values)
    with pytest.raises(UserError, match=rf"search\.image\.{key} is 0: it must be greater than 0"):
        SerpApiLensConfig(**values)


def test_contradictions_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"search\.cache_mode is 'replay', and search\.cache"):
        SearchConfig(cache_mode="replay")
    with pytest.raises(UserError, match=r"search\.text\.price_per_call is -1: it must be 0 or more"):
        SerpApiGoogleConfig(price_per_call=-1)
    with pytest.raises(UserError, match=r"search\.text\.price_per_call is set, and backend ddgs costs nothing"):
        open_backend(DdgsConfig(price_per_call=0.1))
    with pytest.raises(UserError, match=r"search\.text\.summariser_model"):
        PagesConfig(links="ddgs", summariser_url="http://a")
    (tmp_path / "file").write_text("x" * 5000)
    with pytest.raises(UserError, match=r"search\.cache: .*file cannot be used as an answer cache"):
        build_runtime(SearchConfig(cache=str(tmp_path / "file")))


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERPAPI_API_KEY", "JINA_API_KEY", "OPENAI_API_KEY", "MMSEARCH_RETRIEVER_TOKEN", "SEARCH_KEY"):
        monkeypatch.setenv(name, "sesame")


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize(
    ("section", "backend"),
    [
        (SerpApiLensConfig(price_per_call=0.01), "serpapi-lens"),
        (ImageServiceConfig(url="http://127.0.0.1:8001"), "image-service"),
        (RetrieverConfig(url="http://127.0.0.1:8000/retrieve"), "retriever"),
        (SerpApiGoogleConfig(), "serpapi-google"),
        (DdgsConfig(), "ddgs"),
        (PagesConfig(links="serpapi", price_per_call=0.01), "pages"),
        (PagesConfig(links="ddgs", reader="jina"), "pages"),
        (PagesConfig(links="ddgs", summariser_url="http://127.0.0.1:8000/v1", summariser_model="small"), "pages"),
        (McpConfig(server="https://search.example/mcp", tool="search"), "mcp"),
        (McpConfig(server="python server.py", tool="search", environment=["SEARCH_KEY"]), "mcp"),
    ],
)
def test_a_section_opens_its_backend(section: ImageConfig | TextConfig, backend: str) -> None:
    opened = open_backend(section)
    assert opened.name == backend and "sesame" not in opened.fingerprint


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (SerpApiLensConfig(), r"search\.image\.backend: SerpApi needs a key: set SERPAPI_API_KEY"),
        (PagesConfig(links="serpapi"), r"search\.text\.backend: SerpApi needs a key"),
        (McpConfig(server="a", tool="b", environment=["NOT_THERE"]), r"search\.text\.server: .*NOT_THERE"),
    ],
)
def test_what_is_missing_is_named_before_anything_runs(
    section: ImageConfig | TextConfig, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SERPAPI_API_KEY", raising=False)
    with pytest.raises(UserError, match=message):
        open_backend(section)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"image": {"backend": "service", "url": "{}"}}, "search.image.url"),
        ({"text": {"backend": "retriever", "url": "{}"}}, "search.text.url"),
        (
            {"text": {"backend": "pages", "links": "ddgs", "summariser_url": "{}", "summariser_model": "m"}},
            "search.text.summariser_url",
        ),
    ],
)
@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "localhost/retrieve", "ftp://a/b", "http://", "http://a:port/", "http://[::1", ""]
)
def test_an_address_that_is_none_is_refused_where_it_is_written(
    section: dict[str, dict[str, Any]], key: str, url: str
) -> None:
    filled = {tool: {name: value.format(url) for name, value in keys.items()} for tool, keys in section.items()}
    with pytest.raises(UserError, match="is no address of a server, such as http://") as refused:
        build(SearchConfig, filled, lambda key: "recipe.yaml", "search.")
    assert key in str(refused.value)
    assert ("http:// or https:// is missing" in str(refused.value)) == (
        url in ("127.0.0.1:8000", "localhost/retrieve")
    )


@pytest.mark.parametrize("tool", ["image", "text"])
def test_a_server_that_is_not_there_or_says_nothing_is_told_by_the_check(tool: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        image, text = ImageServiceConfig(url=url), RetrieverConfig(url=url)
        sections: dict[str, Any] = {"image": image} if tool == "image" else {"text": text}
        runtime = build_runtime(SearchConfig(**sections, try_timeout_s=0.3))
        with pytest.raises(SearchLost, match=r"cannot be used: the service is not there"):
            asyncio.run(runtime.check())
        silent.listen()
        with pytest.raises(SearchLost, match=r"cannot be used: no answer within 0\.3 s"):
            asyncio.run(runtime.check())
