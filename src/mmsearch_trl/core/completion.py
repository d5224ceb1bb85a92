"""How one assistant turn is sampled, and what was sampled."""

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one turn is sampled.

    Attributes:
        temperature: 0 is greedy.
        seed: Makes the turn independent of its batch mates.
        stops: Texts that end a turn as soon as one is complete; the protocol then cuts exactly (`engine/stops.py`).
        affinity: Turns of one value begin with the same tokens: an engine of several servers keeps them on one, where
            that prefix is cached.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stops: tuple[str, ...] = ()
    affinity: str = ""


class FinishReason(StrEnum):
    STOP = "stop"
    """The model ended its turn."""
    LENGTH = "length"
    """`max_tokens` was reached first."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled turn; the end-of-turn token is included when it was sampled.

    Attributes:
        token_ids: The sampled ids, `(n,)`.
        logprobs: Natural log-probability of each under the full softmax at the sampling temperature, `(n,)`.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
