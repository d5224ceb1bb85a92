"""An engine that replays given turns: for tests, demonstrations and recorded conformance scenarios."""

from collections.abc import Iterable, Sequence

from mmsearch_trl.core.completion import Completion, FinishReason, SamplingParams
from mmsearch_trl.core.errors import EngineError
from mmsearch_trl.core.images import ImageInput


class ScriptedEngine:
    """Writes the given turns in order, one per call; serves one trajectory.

    Args:
        turns: Token ids of each turn, end-of-turn token included where the model would have sampled it.
        stop_ids: Ids that end a turn; a turn without one finishes with `LENGTH`.
    """

    def __init__(self, turns: Iterable[Sequence[int]], stop_ids: Iterable[int]) -> None:
        self._turns = iter(turns)
        self._stop_ids = frozenset(stop_ids)
        self.requests: list[tuple[tuple[int, ...], tuple[str, ...], SamplingParams]] = []
        """What each call was asked: token ids, image keys and sampling."""

    async def generate(
        self, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: SamplingParams
    ) -> Completion:
        self.requests.append((tuple(token_ids), tuple(image.key for image in images), sampling))
        turn = next(self._turns, None)
        if turn is None:
            raise EngineError(f"The script holds {len(self.requests) - 1} turns; one more was asked for.")
        ids = tuple(turn)[: sampling.max_tokens]
        stopped = bool(ids) and ids[-1] in self._stop_ids
        return Completion(ids, (0.0,) * len(ids), FinishReason.STOP if stopped else FinishReason.LENGTH)
