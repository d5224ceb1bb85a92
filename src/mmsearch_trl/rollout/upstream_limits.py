"""The limits of MMSearch-R1's own rollout (`protocol: mmsearch_r1_upstream`), its quirks included.

Turns are not clamped to what is left, replies are not measured, and a failed search neither ends a trajectory nor
leaves anything out of the loss. Upstream lets
turns and replies run past the total and cuts the finished response from the right; attends to it up to
its last turn-end token; and trains the sampled tokens among those. A reward reads what is left of each turn without
its last token, which upstream takes for the turn's end. One thing is done better even here: a cut that falls into an
image takes the whole image away, where upstream leaves pads without features.

Source: `vllm_rollout_spmd.py` and `dp_actor.py` of EvolvingLMMs-Lab/multimodal-search-r1 at 583c6b49.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mmsearch_trl.core.completion import FinishReason
from mmsearch_trl.core.images import ImageInput, Part
from mmsearch_trl.core.observation import Failure, Observation
from mmsearch_trl.core.trajectory import Trajectory, Turn
from mmsearch_trl.rollout.limits import Limits


if TYPE_CHECKING:
    from mmsearch_trl.protocol.chat import ChatEncoder


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamLimits(Limits):
    """As `Limits`, but for what MMSearch-R1's rollout worker does otherwise."""

    def should_abort(self, trajectory: Trajectory, newest: Observation) -> bool:
        return False

    def excuses(self, failure: Failure) -> bool:
        """Never: upstream trains on what follows a failed search as on everything else."""
        return False

    def within(self, window: int) -> "UpstreamLimits":
        """Unchanged: upstream knows no window."""
        return self

    def turn_tokens(self, trajectory: Trajectory, *, final: bool = False) -> int:
        if self.max_context_tokens is None:
            return self.max_turn_tokens
        return Limits.turn_tokens(self, trajectory, final=final)  # `super()` fails in a class with slots

    def fits(self, trajectory: Trajectory, turn_tokens: int, reply_tokens: int, *, final: bool = False) -> bool:
        if self.max_context_tokens is None:
            return True
        return Limits.fits(self, trajectory, turn_tokens, reply_tokens, final=final)

    def finish(self, trajectory: Trajectory, chat: "ChatEncoder") -> Trajectory:
        """The trajectory with its response cut to `max_response_tokens`."""
        return cut_response(trajectory, self.max_response_tokens, chat)

    def attended(self, ids: Sequence[int], turn_end_id: int) -> list[int]:
        """1 up to and including the last turn-end token; all 0 when there is none."""
        last = max((i for i, token in enumerate(ids) if token == turn_end_id), default=-1)
        return [int(i <= last) for i in range(len(ids))]


def cut_response(trajectory: Trajectory, length: int, chat: "ChatEncoder") -> Trajectory:
    """The trajectory with its response cut to at most `length` tokens, from the right, images never split.

    A turn's text becomes what upstream scores: the tokens that are left, but for the last.
    """
    turns: list[Turn] = []
    for turn in trajectory.turns:
        if length <= 0:
            break
        kept = len(turn.token_ids[:length])
        length -= kept
        reply_ids, reply = _cut_reply(turn, length, chat.image_pad_id)
        length -= len(turn.reply_ids)
        turns.append(
            replace(
                turn,
                token_ids=turn.token_ids[:kept],
                finish_reason=turn.finish_reason if kept == len(turn.token_ids) else FinishReason.LENGTH,
                logprobs=turn.logprobs[:kept],
                text=chat.decode(turn.token_ids[: max(kept - 1, 0)]),
                reply=reply,
                reply_ids=reply_ids,
            )
        )
    return replace(trajectory, turns=turns)


def _cut_reply(turn: Turn, length: int, image_pad_id: int) -> tuple[tuple[int, ...], tuple[Part, ...]]:
    if len(turn.reply_ids) <= length:
        return turn.reply_ids, turn.reply
    ids = turn.reply_ids[: max(length, 0)]
    whole, pads = 0, ids.count(image_pad_id)
    for image in turn.reply_images:
        if pads < image.num_tokens:
            break
        pads -= image.num_tokens
        whole += 1
    if pads:  # the cut fell into an image: end before its first pad
        ids = ids[: len(ids) - next(i for i, token in enumerate(reversed(ids)) if token == image_pad_id)]
        ids = ids[: len(ids) - pads]
    parts: list[Part] = []
    for part in turn.reply:
        if isinstance(part, ImageInput):
            if whole == 0:
                break
            whole -= 1
        parts.append(part)
    return ids, tuple(parts)
