"""Orders the passages of a query by a cross-encoder, which reads question and passage together.

Better than comparing vectors, and too slow for a corpus: it is for the ten or so passages that an index has found.
Each query is scored against its own passages only, so the work grows with the number of passages. Pairs of all
requests under way share their batches; what a request that was given up still had waiting is not computed.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mmsearch_trl.core.boundaries import loading
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.models.location import find_model
from mmsearch_trl.search.calls.batching import Batched
from mmsearch_trl.search.index.weights_digest import weights_digest
from mmsearch_trl.search.text.analysis import encodable


_MAX_TOKENS = 512
_BATCH = 32


class Reranker:
    """A pretrained cross-encoder with one label, on the processor.

    Args:
        model: Path or Hub name.

    Raises:
        UserError: the model cannot be loaded, or does not give one number.
    """

    name = "reranker"

    def __init__(self, model: str | Path) -> None:
        find_model(f"the reranker {str(model)!r} cannot be loaded", str(model))
        with loading("the reranker", model, SafetensorError):
            self._tokenizer = AutoTokenizer.from_pretrained(model)
            loaded = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32)
        if loaded.config.num_labels != 1:
            raise UserError(f"{str(model)!r} has {loaded.config.num_labels} labels: a reranker has one")
        self._model = loaded.eval()
        self.fingerprint = f"{loaded.config.model_type}-{weights_digest(loaded)}"
        self._scored = Batched(self.scores, _BATCH)

    async def best(self, query: str, passages: Sequence[str], k: int) -> list[tuple[int, float]]:
        """Places and scores of the `k` passages that fit best, best first; equal scores keep their order."""
        scores = await asyncio.gather(*(self._scored((query, passage)) for passage in passages))
        order = sorted(range(len(scores)), key=lambda place: -scores[place])
        return [(place, scores[place]) for place in order[:k]]

    @torch.inference_mode()
    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The model's number for each pair of query and passage, not squashed: higher fits better."""
        queries, passages = ([encodable(text) for text in texts] for texts in zip(*pairs, strict=True))
        inputs = self._tokenizer(
            queries, passages, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
        )
        return self._model(**inputs).logits[:, 0].tolist()
