"""The encoder of the benchmark, and the vectors of a corpus: encoded, or drawn like those that were.

No pretrained weights are needed: a BERT of two layers with random weights, whose mean-pooled states tell passages with
other words apart. It is far cheaper than E5-base, so times say nothing about E5's own cost.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from benchmarks.search.corpus import PAIRS, SYLLABLES, TOPICS, Corpus
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from mmsearch_trl.search.index.rows import read_rows
from mmsearch_trl.search.text.encoder import TextEncoder


DIMENSION = 256
_AT_ONCE = 256
_DRAWN_AT_ONCE = 50_000
Vectors = NDArray[np.float32]


def write_encoder(folder: Path) -> Path:
    """A checkpoint that says of itself what E5 is: the mean of the last states, and a word before every text."""
    pieces = ["[PAD]", "[UNK]", "query", "passage", ":", '"', *PAIRS, *(f"##{syllable}" for syllable in SYLLABLES)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model = folder / "random-e5"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(model)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=DIMENSION,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * DIMENSION,
        max_position_embeddings=512,
    )
    bert = BertModel(config).eval()
    # What stands where is noise in an untrained model, and would hide which words there are.
    bert.embeddings.position_embeddings.weight.data.zero_()
    bert.save_pretrained(model)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    steps = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (model / "modules.json").write_text(json.dumps(steps), encoding="utf-8")
    prompts = {"prompts": {"query": "query: ", "passage": "passage: "}}
    (model / "config_sentence_transformers.json").write_text(json.dumps(prompts), encoding="utf-8")
    return model


@dataclass(frozen=True, slots=True)
class Encoded:
    """The vectors of the first `encoded` passages of a corpus, and what one of them took; the others are drawn."""

    encoded: int
    ms_per_passage: float


def fill(vectors: Vectors, corpus: Corpus, encoder: TextEncoder, most: int, seed: int) -> Encoded:
    """Fill `(n, DIMENSION)`: encode the first `most` passages, draw the rest."""
    count = min(most, len(corpus))
    start, rows = perf_counter(), read_rows(corpus.file)
    for first in range(0, count, _AT_ONCE):
        size = min(_AT_ONCE, count - first)
        vectors[first : first + size] = encoder.passages([next(rows).text("contents") for _ in range(size)])
    seconds = perf_counter() - start
    for first in range(count, len(corpus), _DRAWN_AT_ONCE):
        last = min(first + _DRAWN_AT_ONCE, len(corpus))
        rng = np.random.default_rng((seed, first))
        vectors[first:last] = drawn(np.asarray(vectors[:count]), corpus.topics[:count], corpus.topics[first:last], rng)
    return Encoded(count, 1e3 * seconds / count)


def drawn(known: Vectors, topics: NDArray[np.uint16], wanted: NDArray[np.uint16], rng: np.random.Generator) -> Vectors:
    """Unit vectors of these topics, spread like the known ones: two of the topic, mixed on a circle about its mean."""
    found = np.empty((len(wanted), known.shape[1]), np.float32)
    for topic in range(TOPICS):
        rows, own = np.flatnonzero(wanted == topic), known[topics == topic]
        own = own if len(own) > 1 else known  # of a tiny corpus, not every topic is known
        mean = own.mean(axis=0)
        one, other = (own[rng.integers(0, len(own), len(rows))] - mean for _ in range(2))
        angle = rng.uniform(0, 2 * np.pi, (len(rows), 1)).astype(np.float32)
        found[rows] = mean + np.cos(angle) * one + np.sin(angle) * other
    return found / np.linalg.norm(found, axis=1, keepdims=True)
