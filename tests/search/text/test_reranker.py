"""Reranking against scores that are computed pair by pair, with no padding and no batches."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from search.text.encoders import WORDS, save_cross_encoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mmsearch_trl.search.text.reranker import Reranker


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cross_encoder(tmp_path_factory.mktemp("models") / "tiny")


def texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 40))) for _ in range(count)]


@torch.inference_mode()
def one_by_one(model: Path, query: str, passages: Sequence[str]) -> list[float]:
    tokenizer, encoder = (
        AutoTokenizer.from_pretrained(model),
        AutoModelForSequenceClassification.from_pretrained(model),
    )
    given = (tokenizer(query, passage, return_tensors="pt") for passage in passages)
    return [encoder.eval()(**inputs).logits.item() for inputs in given]


def test_the_order_is_that_of_brute_force(model: Path) -> None:
    passages = texts(70, seed=0)
    expected = one_by_one(model, "word1 word2", passages)
    assert len({round(score, 3) for score in expected}) > 60
    best = asyncio.run(Reranker(model).best("word1 word2", passages, 10))
    assert [place for place, _ in best] == sorted(range(70), key=lambda place: -expected[place])[:10]
    assert [score for _, score in best] == pytest.approx(sorted(expected, reverse=True)[:10], abs=1e-4)


def test_queries_at_the_same_time_share_batches_and_not_passages(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = Reranker.scores

    def noting(self: Reranker, pairs: Any) -> list[float]:
        sizes.append(len(pairs))
        return plain(self, pairs)

    monkeypatch.setattr(Reranker, "scores", noting)
    queries, reranker = texts(20, seed=1), Reranker(model)
    own = [texts(number % 5, seed=number) for number in range(20)]

    async def run() -> list[Any]:
        return await asyncio.gather(*(reranker.best(query, own[n], 9) for n, query in enumerate(queries)))

    for query, passages, best in zip(queries, own, asyncio.run(run()), strict=True):
        expected = one_by_one(model, query, passages)
        assert [score for _, score in best] == pytest.approx(sorted(expected, reverse=True), abs=1e-4)
        assert sorted(place for place, _ in best) == list(range(len(passages)))
    assert sum(sizes) == sum(map(len, own)) and len(sizes) < sum(sizes)


def test_equal_passages_keep_their_order(model: Path) -> None:
    best = asyncio.run(Reranker(model).best("word1", ["word2"] * 4, 3))
    assert [place for place, _ in best] == [0, 1, 2]


@pytest.mark.parametrize("text", ["", "word1 " * 3000, "\ud800 word1", "\x00"])
def test_any_text_has_a_score(model: Path, text: str) -> None:
    [(_, score), _] = asyncio.run(Reranker(model).best(text, [text, "word1"], 2))
    assert isinstance(score, float)


def test_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 3 labels: a reranker has one"):
        Reranker(save_cross_encoder(tmp_path / "three", labels=3))
    with pytest.raises(ValueError, match="the reranker '/nowhere' cannot be loaded"):
        Reranker("/nowhere")
