"""Vectors of texts by a trained encoder such as E5: mean of the last hidden states, brought to length one.

Encoders want to be told a question from a passage, by words in front of it. Which ones follows from the model's name,
as in Search-R1: E5's `query: ` and `passage: `, BGE's sentence before questions, else none.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoModel, AutoTokenizer

from mmsearch_trl.core.boundaries import loading
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.search.index.descriptor import FloatArray
from mmsearch_trl.search.index.weights_digest import weights_digest
from mmsearch_trl.search.text.analysis import encodable


MAX_QUERY_TOKENS = 256
MAX_PASSAGE_TOKENS = 512
_BATCH = 64
_PREFIXES = {
    "e5": ("query: ", "passage: "),
    "bge": ("Represent this sentence for searching relevant passages: ", ""),
}


class TextEncoder:
    """A pretrained encoder.

    Args:
        model: Path or Hub name.
        device: Where it runs.

    Raises:
        UserError: the model cannot be loaded, or the device not be used.
    """

    def __init__(self, model: str | Path, *, device: str = "cpu") -> None:
        with loading("the text encoder", model, SafetensorError):
            self._tokenizer = AutoTokenizer.from_pretrained(model)
            loaded = AutoModel.from_pretrained(model, dtype=torch.float32).eval()
        try:
            self._model = loaded.to(device)
        except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
            raise UserError(f"the device {device!r} cannot be used: {error}") from error
        self._device = device
        self.name = str(model)
        named = Path(self.name).name.lower()
        self._query, self._passage = next((found for part, found in _PREFIXES.items() if part in named), ("", ""))
        digest = weights_digest(self._model)
        self.fingerprint = f"{self._model.config.model_type}-{digest}-{self._query}{self._passage}"
        self.dim: int = self._model.config.hidden_size

    def queries(self, texts: Sequence[str]) -> FloatArray:
        """Questions to unit rows `(n, dim)`."""
        return self._encode([self._query + text for text in texts], MAX_QUERY_TOKENS)

    def passages(self, texts: Sequence[str]) -> FloatArray:
        """Passages to unit rows `(n, dim)`."""
        return self._encode([self._passage + text for text in texts], MAX_PASSAGE_TOKENS)

    def _encode(self, texts: Sequence[str], most: int) -> FloatArray:
        # By length, so that short texts are not padded to the longest; the rows come back in the order of the texts.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        rows = np.zeros((len(texts), self.dim), np.float32)
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            rows[chosen] = self._encode_batch([texts[index] for index in chosen], most)
        return rows

    @torch.inference_mode()
    def _encode_batch(self, texts: Sequence[str], most: int) -> FloatArray:
        given = [encodable(text) for text in texts]
        inputs = self._tokenizer(given, padding=True, truncation=True, max_length=most, return_tensors="pt")
        inputs = inputs.to(self._device)
        hidden = self._model(**inputs).last_hidden_state.float()
        # The mean over a text's own tokens: padding must not move it.
        mask = inputs["attention_mask"].unsqueeze(-1)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
