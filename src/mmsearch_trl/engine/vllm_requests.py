"""What a vLLM request says, whether it travels over HTTP or is made in process.

vLLM replaces every image pad of a token prompt by that image's tokens, so a prompt is sent with *one* pad per image;
ids that were expanded before would be expanded again, which vLLM does not report. The prompt ids that vLLM echoes are
compared with ours for this reason.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mmsearch_trl.core.completion import SamplingParams
from mmsearch_trl.core.errors import EngineError


_FORBIDDEN_BIAS = -100.0
"""The strongest logit bias that vLLM takes."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The ids that an engine treats specially.

    Attributes:
        stop_ids: End a turn, and belong to it.
        forbidden_ids: Are never sampled: vision and tool control tokens, and ids that no token has.
        image_pad_id: Stands for one position of an image.
    """

    stop_ids: frozenset[int]
    forbidden_ids: frozenset[int]
    image_pad_id: int

    @classmethod
    def of(
        cls, stop_ids: Iterable[int], forbidden_ids: Iterable[int], image_pad_id: int, *, named: int, width: int
    ) -> "Vocabulary":
        """`named` ids have a token, the model scores `width`: those between are forbidden."""
        return cls(frozenset(stop_ids), frozenset(forbidden_ids) | frozenset(range(named, width)), image_pad_id)


def compact(token_ids: Sequence[int], image_pad_id: int) -> list[int]:
    """Token ids with one pad per image; images are told apart by the markers around them."""
    kept = []
    previous = None
    for token in token_ids:
        if token != image_pad_id or previous != image_pad_id:
            kept.append(token)
        previous = token
    return kept


def sampling_fields(sampling: SamplingParams, vocabulary: Vocabulary) -> dict[str, Any]:
    """vLLM's `SamplingParams` as keywords; log-probs are asked for the sampled token alone."""
    return {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": sampling.seed,
        "logprobs": 0,
        "stop_token_ids": sorted(vocabulary.stop_ids),
        "logit_bias": dict.fromkeys(sorted(vocabulary.forbidden_ids), _FORBIDDEN_BIAS),
        "detokenize": bool(sampling.stops),
        "stop": list(sampling.stops),
    }


def check_echo(sent: Sequence[int], echoed: Collection[int] | None) -> None:
    """Compare our expanded prompt with the one that vLLM sampled from.

    Raises:
        EngineError: they differ; the message says where.
    """
    if echoed is None:
        raise EngineError("vLLM did not return the prompt's token ids; it must be 0.30 or 0.31")
    if len(echoed) == len(sent) and all(ours == theirs for ours, theirs in zip(sent, echoed, strict=True)):
        return
    first = next((i for i, (ours, theirs) in enumerate(zip(sent, echoed, strict=False)) if ours != theirs), None)
    raise EngineError(
        f"vLLM sampled from another prompt than ours: {len(echoed)} tokens for our {len(sent)}, different from "
        f"position {min(len(sent), len(echoed)) if first is None else first} on. Its image processor must be that of "
        "the trained model, with the same mm_processor_kwargs."
    )
