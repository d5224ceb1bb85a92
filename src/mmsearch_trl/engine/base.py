"""An engine writes one assistant turn. It knows nothing of tools, protocols or tasks."""

from collections.abc import Sequence
from typing import Protocol

from mmsearch_trl.core.completion import Completion, SamplingParams
from mmsearch_trl.core.images import ImageInput


class Engine(Protocol):
    async def generate(
        self, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: SamplingParams
    ) -> Completion:
        """Write one assistant turn after `token_ids` (image pads expanded, one run per image, in order).

        Cancelling the call abandons the request without disturbing others.

        Raises:
            ContextOverflow: the prompt leaves no room for a token.
            EngineError: the turn could not be written.
        """
        ...


class TimedEngine(Engine, Protocol):
    @property
    def busy_seconds(self) -> float:
        """Time spent generating since it was made."""
        ...
