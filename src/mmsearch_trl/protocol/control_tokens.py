"""The control tokens of one processor: those that steer a model and that no text may become."""

from collections.abc import Sequence
from typing import Any


NO_TOKEN = -1
_VISION_TOKENS = ("image_token", "video_token", "vision_start_token", "vision_end_token")
_VISION_TEXTS = ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "<|vision_pad|>")
_TOOL_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")


class ControlTokens:
    """
    Args:
        processor: As `ChatEncoder` takes it.

    Attributes:
        image_pad: Stands for one position of an image; `NO_TOKEN` for a language model.
        vision: What is written around and for images.
        tools: Calls in the model's own tool format.
    """

    def __init__(self, processor: Any) -> None:
        self._tokenizer = tokenizer = getattr(processor, "tokenizer", processor)
        vocabulary = tokenizer.get_vocab()
        self.image_pad: int = NO_TOKEN
        if tokenizer is not processor:
            self.image_pad = tokenizer.convert_tokens_to_ids(processor.image_token)
        names = [*(getattr(processor, name, None) for name in _VISION_TOKENS), *_VISION_TEXTS]
        self.vision = frozenset(vocabulary[name] for name in names if name in vocabulary)
        self.tools = frozenset(vocabulary[name] for name in _TOOL_TOKENS if name in vocabulary)
        self._ids = _special_ids(tokenizer) | self.vision
        self.texts = [str(text) for text in tokenizer.convert_ids_to_tokens(sorted(self._ids - {None}))]

    def __contains__(self, token: int) -> bool:
        return token in self._ids

    def count(self, ids: Sequence[int]) -> int:
        """How many of the ids are control tokens."""
        return sum(token in self._ids for token in ids)

    def may_be_in(self, text: str) -> bool:
        """False where a text certainly becomes no control token: a glance costs a thousandth of tokenising it."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return True
        normal = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
        return any(literal in text or literal in normal for literal in self.texts)


def _special_ids(tokenizer: Any) -> frozenset[int]:
    """Tokens that control a model; an unknown character is none, unless it is written as one (Qwen: <|endoftext|>)."""
    ids = set(tokenizer.all_special_ids)
    # Llama's and Gemma's configurations name few tokens; that the others are special stands beside each alone.
    ids |= {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids -= {tokenizer.unk_token_id}
    return frozenset(ids | {tokenizer.eos_token_id, tokenizer.pad_token_id})
