"""A trained vision tower as encoder: finds other images of the same thing, where weights are at hand.

Any transformers model that gives one vector an image will do: SigLIP and CLIP (`get_image_features`), DINOv2 and
vision towers alone (`pooler_output`). The fingerprint is taken from the weights themselves, so that an index never
answers queries encoded with other weights of the same name.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModel

from mmsearch_trl.core.boundaries import loading
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.models.location import find_model
from mmsearch_trl.search.index.descriptor import FloatArray
from mmsearch_trl.search.index.weights_digest import weights_digest


_BATCH = 32


class VisionEncoder:
    """An `Encoder` over a pretrained model.

    Args:
        model: Path or hub name of the model.
        device: Where it runs.

    Raises:
        UserError: the model cannot be loaded or gives no vector for an image.
    """

    def __init__(self, model: str | Path, *, device: str = "cpu") -> None:
        find_model(f"the vision model {str(model)!r} cannot be loaded", str(model))
        with loading("the vision model", model, SafetensorError):
            # The Pillow processor: the same pixels on every machine, torchvision or not.
            self._processor = AutoImageProcessor.from_pretrained(model, backend="pil")
            self._model = AutoModel.from_pretrained(model, dtype=torch.float32).to(device).eval()
        self._device = device
        self.name = str(model)
        self.fingerprint = f"{self._model.config.model_type}-{weights_digest(self._model)}"
        self.dim = self.encode([Image.new("RGB", (32, 32), "white")]).shape[1]

    def encode(self, images: Sequence[Image.Image]) -> FloatArray:
        """RGB images, any sizes, to unit rows `(n, dim)`."""
        rows = [self._encode_batch(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
        return np.concatenate(rows) if rows else np.zeros((0, self.dim), np.float32)

    @torch.inference_mode()
    def _encode_batch(self, images: Sequence[Image.Image]) -> FloatArray:
        pixels = self._processor(images=list(images), return_tensors="pt")["pixel_values"].to(self._device)
        encode = getattr(self._model, "get_image_features", self._model)
        features = torch.nn.functional.normalize(_pooled(encode(pixel_values=pixels)).float(), dim=-1)
        return features.cpu().numpy().astype(np.float32)


def _pooled(output: Any) -> torch.Tensor:
    """The `(n, dim)` features in a model's output: `get_image_features` gave a tensor before transformers 5."""
    if isinstance(output, torch.Tensor):
        return output
    pooled = getattr(output, "pooler_output", None)
    if pooled is None:
        raise UserError(f"the model gives no pooled vector for an image (its output is {type(output).__name__})")
    return pooled
