"""Vectors of texts by a trained encoder such as E5, made as the model says of itself (`encoder_recipe.py`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer

from mmsearch_trl.core.boundaries import loading, reading
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.models.location import find_model
from mmsearch_trl.search.index.descriptor import FloatArray
from mmsearch_trl.search.index.weights_digest import weights_digest
from mmsearch_trl.search.text.analysis import encodable
from mmsearch_trl.search.text.encoder_recipe import model_file, model_object, read_recipe


MAX_QUERY_TOKENS = 256
MAX_PASSAGE_TOKENS = 512
_BATCH = 64


class TextEncoder:
    """A pretrained encoder.

    Args:
        model: Path or Hub name.
        device: Where it runs.
        query_prefix: What goes before a question, in place of what the model says.
        passage_prefix: Likewise before a passage.

    Raises:
        UserError: the model cannot be loaded, makes its vectors in a way that is not known here, or the device cannot
            be used.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "cpu",
        query_prefix: str | None = None,
        passage_prefix: str | None = None,
    ) -> None:
        find_model(f"the text encoder {str(model)!r} cannot be loaded", str(model))
        with loading("the text encoder", model, SafetensorError):
            self._tokenizer = AutoTokenizer.from_pretrained(model)
            of_pairs = AutoConfig.from_pretrained(model).is_encoder_decoder  # such as T5: its encoder alone
            loaded = (AutoModelForTextEncoding if of_pairs else AutoModel).from_pretrained(model, dtype=torch.float32)
        self.recipe = read_recipe(model, query_prefix, passage_prefix)
        layers = [_layer(model, folder) for folder in self.recipe.layers]
        try:
            self._model = loaded.eval().to(device)
            self._layers = torch.nn.Sequential(*layers).to(device)
        except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
            raise UserError(f"the device {device!r} cannot be used: {error}") from error
        self._device = device
        self.name = str(model)
        digest = weights_digest(self._model) + (weights_digest(self._layers) if layers else "")
        self.fingerprint = f"{self._model.config.model_type}-{digest}-{self.recipe.mark()}"
        self.dim: int = self._encode_batch(["a"], 16, "").shape[1]

    def queries(self, texts: Sequence[str]) -> FloatArray:
        """Questions to rows `(n, dim)`, of length one unless the model compares by dot product."""
        return self._encode(texts, MAX_QUERY_TOKENS, self.recipe.query)

    def passages(self, texts: Sequence[str]) -> FloatArray:
        """Passages to rows `(n, dim)`, likewise."""
        return self._encode(texts, MAX_PASSAGE_TOKENS, self.recipe.passage)

    def _encode(self, texts: Sequence[str], most: int, prompt: str) -> FloatArray:
        # By length, so that short texts are not padded to the longest; the rows come back in the order of the texts.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        rows = np.zeros((len(texts), self.dim), np.float32)
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            rows[chosen] = self._encode_batch([texts[index] for index in chosen], most, prompt)
        return rows

    @torch.inference_mode()
    def _encode_batch(self, texts: Sequence[str], most: int, prompt: str) -> FloatArray:
        recipe = self.recipe
        given = [prompt + encodable(text) for text in texts]
        if recipe.lower_case:
            given = [text.lower() for text in given]
        most = min(most, recipe.max_tokens or most)
        inputs = self._tokenizer(given, padding=True, truncation=True, max_length=most, return_tensors="pt")
        if not inputs["input_ids"].shape[1]:  # empty texts, and a tokenizer that puts nothing around a text
            return np.zeros((len(texts), self.dim), np.float32)
        inputs = inputs.to(self._device)
        hidden = self._model(**inputs).last_hidden_state.float()
        mask, places = inputs["attention_mask"], inputs["attention_mask"].cumsum(dim=1)
        if not recipe.pools_prompt and prompt:
            mask = mask * (places > self._tokens_before(prompt))
        pooled = torch.cat([_pooled(hidden, mask, places, pooling) for pooling in recipe.poolings], dim=-1)
        rows = self._layers(pooled)
        return (torch.nn.functional.normalize(rows, dim=-1) if recipe.normalised else rows).cpu().numpy()

    def _tokens_before(self, prompt: str) -> int:
        """Tokens of a prompt, those included that begin every text."""
        ids = self._tokenizer(prompt)["input_ids"]
        return len(ids) - (1 if ids and ids[-1] in self._tokenizer.all_special_ids else 0)


def _pooled(hidden: torch.Tensor, mask: torch.Tensor, places: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector `(n, d)` of the states `(n, t, d)` of each text's own tokens, those that `mask` `(n, t)` holds.

    Padding, on whichever side, must not move it.

    Args:
        places: `(n, t)`: the number of each token in its text, from 1.
    """
    own, rows = mask.unsqueeze(-1), torch.arange(len(hidden), device=hidden.device)
    match pooling:
        case "cls":
            return hidden[rows, mask.argmax(dim=1)]
        case "lasttoken":
            return hidden[rows, (mask * places).argmax(dim=1)]
        case "max":
            return hidden.masked_fill(own == 0, float("-inf")).amax(dim=1).nan_to_num(neginf=0.0)
        case "weightedmean":  # later tokens weigh more
            weights = own * places.unsqueeze(-1)
            return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        case "mean_sqrt_len_tokens":
            return (hidden * own).sum(dim=1) / own.sum(dim=1).clamp(min=1).sqrt()
        case _:
            return (hidden * own).sum(dim=1) / own.sum(dim=1).clamp(min=1)


def _layer(model: str | Path, folder: str) -> torch.nn.Module:
    """A linear layer behind the pooling, with its activation.

    Raises:
        UserError: its weights are missing or damaged, or it is of a kind that is not known here.
    """
    config = model_object(model, f"{folder}/config.json")
    named = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation: Any = getattr(torch.nn, named.rpartition(".")[2], None) if named.startswith("torch.nn.") else None
    if not isinstance(activation, type) or config.get("use_residual"):
        raise UserError(f"the text encoder {str(model)!r} has a layer {folder!r} of a kind that is not known here")
    file = model_file(model, f"{folder}/model.safetensors") or model_file(model, f"{folder}/pytorch_model.bin")
    if file is None:
        raise UserError(f"the text encoder {str(model)!r} has no weights of its layer {folder!r}")
    with loading("the text encoder", model, SafetensorError), reading(file):
        weights = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
        width, given = weights["linear.weight"].shape
        linear = torch.nn.Linear(given, width, bias="linear.bias" in weights)
        linear.load_state_dict({name.removeprefix("linear."): weight for name, weight in weights.items()})
    return torch.nn.Sequential(linear, activation()).float().eval()
