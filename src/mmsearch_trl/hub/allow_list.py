"""What of a run may be published: an allow-list, so that nothing that is written later is published by itself.

Rollouts hold the questions and pictures of the data, which nobody agreed to publish with the weights: traces,
completions, pages and evaluations, and in a checkpoint the generation batch that it lies in.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers.trainer as hf_trainer
from huggingface_hub import HfApi


PUBLISHED = (
    *("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json"),
    *("adapter_model.bin", "adapter_config.json", "config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json"),
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    *("README.md", "recipe.yaml", "environment.json"),
)
"""Of a run's folder: the model, its processor, its card, and how it was made; nothing of the folders in it."""

PUBLISHED_TO_RESUME = (
    "optimizer.*",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "trainer_state.json",
    "global_step*",
    "critic/*",
)
"""Of a checkpoint's folder, where `hub_strategy` publishes checkpoints, also these."""

_FOLDERS = ("*/*",)


class _AllowListed(HfApi):
    """Uploads what may be published."""

    def upload_folder(self, **options: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        allowed = PUBLISHED if options.get("path_in_repo") is None else (*PUBLISHED, *PUBLISHED_TO_RESUME)
        ignored = [*(options.get("ignore_patterns") or ()), *(_FOLDERS if allowed is PUBLISHED else ())]
        return super().upload_folder(**options | {"allow_patterns": list(allowed), "ignore_patterns": ignored})


@contextmanager
def allow_listed() -> Iterator[None]:
    """Have the uploads that a trainer begins meanwhile take what may be published."""
    plain = hf_trainer.hf_api
    hf_trainer.hf_api = _AllowListed  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        hf_trainer.hf_api = plain
