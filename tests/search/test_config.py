import asyncio
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmsearch_trl.core.observation import FailureKind, ImageHit, ImageQuery, Observation, TextHit
from mmsearch_trl.search import factory as opening
from mmsearch_trl.search.config import IMAGE_SOURCES, TEXT_SOURCES, SearchConfig
from mmsearch_trl.search.factory import build_runtime
from mmsearch_trl.search.index_build import build_image_index, build_text_index
from mmsearch_trl.search.runtime import SearchRuntime


@pytest.fixture
def indexes(emblem: Callable[..., Image.Image], tmp_path: Path) -> dict[str, str]:
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        emblem(number).save(tmp_path / "pictures" / f"{number}.png")
    rows = [{"title": f"Emblem {number}", "text": f"The emblem {number} of Calton."} for number in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    image, text = str(tmp_path / "image"), str(tmp_path / "text")
    build_image_index(tmp_path / "pictures", image, progress=False)
    build_text_index(tmp_path / "rows.jsonl", text, progress=False)
    return {"image_index": image, "text_index": text}


def test_every_key_has_a_help_text() -> None:
    assert all(field.metadata.get("help") for field in fields(SearchConfig))


async def both(runtime: SearchRuntime, image: ImageQuery, text: str) -> tuple[Observation, Observation]:
    return await runtime.image_search(image), await runtime.text_search(text)


def test_a_recipe_searches_both_indexes_and_keeps_the_answers(
    indexes: dict[str, str], emblem: Callable[..., Image.Image], tmp_path: Path
) -> None:
    config = SearchConfig(**indexes, image_top_k=2, text_top_k=1, cache=str(tmp_path / "cache.sqlite"))  # type: ignore
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
    runtime = build_runtime(SearchConfig(image_cache=str(tmp_path)))
    query = ImageQuery(Image.new("RGB", (4, 4)), data_id="fvqa_train_1")
    image, text = asyncio.run(both(runtime, query, "who?"))
    assert image.hits == (ImageHit("a"),)
    assert text.failure is not None and text.failure.kind is FailureKind.UNAVAILABLE


@pytest.mark.parametrize("key", ["image_index", "image_cache", "text_index"])
def test_a_missing_path_is_named_with_its_key(key: str) -> None:
    values: Any = {key: "/nowhere/at/all"}
    with pytest.raises(ValueError, match=rf"search\.{key}: /nowhere/at/all does not exist"):
        build_runtime(SearchConfig(**values))


@pytest.mark.parametrize("key", ["image_index", "image_cache", "text_index"])
def test_a_folder_of_something_else_is_named_with_its_key(key: str, tmp_path: Path) -> None:
    values: Any = {key: str(tmp_path)}
    with pytest.raises(ValueError, match=rf"search\.{key}: {tmp_path} "):
        build_runtime(SearchConfig(**values))


@pytest.mark.parametrize(
    "key", ["image_top_k", "timeout_s", "try_timeout_s", "thumbnail_side", "text_calls_per_second"]
)
def test_a_number_must_be_greater_than_zero(key: str) -> None:
    values: Any = {key: 0}
    with pytest.raises(ValueError, match=rf"search\.{key} is 0: it must be greater than 0"):
        build_runtime(SearchConfig(**values))


def test_contradictions_are_errors(indexes: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"search\.image_index and search\.image_cache are set: keep one of them"):
        build_runtime(SearchConfig(image_index=indexes["image_index"], image_cache=str(tmp_path)))
    with pytest.raises(ValueError, match=r"search\.image_index is not set"):
        build_runtime(SearchConfig(image_encoder="model"))
    with pytest.raises(ValueError, match=r"search\.cache_mode is 'replay', and search\.cache"):
        build_runtime(SearchConfig(cache_mode="replay"))
    (tmp_path / "file").write_text("x" * 5000)
    with pytest.raises(ValueError, match=r"search\.cache: .*file cannot be used as an answer cache"):
        build_runtime(SearchConfig(cache=str(tmp_path / "file")))


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERPAPI_API_KEY", "JINA_API_KEY", "OPENAI_API_KEY", "MMSEARCH_RETRIEVER_TOKEN", "SEARCH_KEY"):
        monkeypatch.setenv(name, "sesame")


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize(
    ("values", "backend"),
    [
        ({"image_serpapi": True}, "serpapi-lens"),
        ({"image_service": "http://127.0.0.1:8001"}, "image-service"),
        ({"text_retriever": "http://127.0.0.1:8000/retrieve"}, "retriever"),
        ({"text_serpapi": True}, "serpapi-google"),
        ({"text_ddgs": True}, "ddgs"),
        ({"text_pages": "serpapi"}, "pages"),
        ({"text_pages": "ddgs", "page_reader": "jina"}, "pages"),
        ({"text_pages": "ddgs", "summariser_url": "http://127.0.0.1:8000/v1", "summariser_model": "small"}, "pages"),
        ({"text_mcp": "https://search.example/mcp", "mcp_tool": "search"}, "mcp"),
        ({"text_mcp": "python server.py", "mcp_tool": "search", "mcp_environment": ["SEARCH_KEY"]}, "mcp"),
    ],
)
def test_one_key_chooses_a_backend(values: Any, backend: str) -> None:
    runtime = build_runtime(SearchConfig(**values))
    [chosen] = [part for part in (runtime._image, runtime._text) if part is not None]
    assert chosen.name == backend and "sesame" not in chosen.fingerprint
    runtime.close()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_serpapi": True}, r"search\.image_serpapi: SerpApi needs a key: set SERPAPI_API_KEY"),
        ({"text_pages": "serpapi"}, r"search\.text_pages: SerpApi needs a key"),
        ({"text_mcp": "python server.py"}, r"search\.mcp_tool"),
        ({"mcp_tool": "search"}, r"search\.text_mcp"),
        ({"text_mcp": "a", "mcp_tool": "b", "mcp_environment": ["NOT_THERE"]}, r"search\.text_mcp: .*NOT_THERE"),
        ({"text_ddgs": True, "summariser_url": "http://a"}, r"search\.summariser_model"),
        ({"text_ddgs": True, "text_retriever": "http://a"}, r"search\.text_retriever and search\.text_ddgs are set"),
    ],
)
def test_what_is_missing_is_named_before_anything_runs(
    values: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SERPAPI_API_KEY", raising=False)
    with pytest.raises(ValueError, match=message):
        build_runtime(SearchConfig(**values))


def test_the_keys_that_choose_a_backend_are_those_that_open_one() -> None:
    assert set(IMAGE_SOURCES) == set(opening._IMAGE)
    assert set(TEXT_SOURCES) == {*opening._TEXT, "text_pages"}
