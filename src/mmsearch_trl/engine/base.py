"""An engine writes one assistant turn. It knows nothing of tools, protocols or tasks."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from PIL import Image


@dataclass(frozen=True, slots=True)
class ImageInput:
    """One image as the model sees it.

    Attributes:
        image: RGB picture, before the model's own image processor.
        key: SHA-256 of its pixels; the same picture is processed once per rollout.
        num_tokens: Image pads that stand for it in the token ids.
    """

    image: Image.Image
    key: str
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
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


class EngineError(Exception):
    """The engine could not write a turn: an infrastructure failure of one trajectory, never of the batch."""


class ContextOverflow(EngineError):
    """The prompt does not fit the engine's window: the end of a trajectory, and nobody's failure."""


class Engine(Protocol):
    async def generate(self, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: Sampling) -> Completion:
        """Write one assistant turn after `token_ids` (image pads expanded, one run per image, in order).

        Cancelling the call abandons the request without disturbing others.

        Raises:
            ContextOverflow: the prompt leaves no room for a token.
            EngineError: the turn could not be written.
        """
        ...
