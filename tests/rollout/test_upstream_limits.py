"""Upstream's end of a rollout, over every length at which it can cut."""

from dataclasses import replace

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import FinishReason
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.observation import Failure, FailureKind, ImageHit, Observation
from mmsearch_trl.core.trajectory import Trajectory, Turn
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.upstream_limits import UpstreamLimits, cut_response
from mmsearch_trl.trainer.batch import loss_mask


PROTOCOL = tiny.qwen25().protocol()
CHAT = PROTOCOL.chat
[TASK] = tiny.tasks(1)
END = CHAT.turn_end_id


@pytest.mark.parametrize("kind", [FailureKind.TIMEOUT, FailureKind.UNAVAILABLE, FailureKind.INVALID_QUERY])
def test_what_follows_a_failed_search_is_trained_as_upstream_trains_it(kind: FailureKind) -> None:
    trajectory = _trajectory()
    failed = Observation(tool=ActionKind.IMAGE_SEARCH, failure=Failure(kind, "down"))
    trajectory.turns[0] = replace(trajectory.turns[0], observation=failed)
    upstream, ours = (loss_mask(trajectory, limits, mask_failures=True) for limits in (UpstreamLimits(), Limits()))
    assert upstream == trajectory.loss_mask
    assert any(ours) is (kind is FailureKind.INVALID_QUERY)


def _trajectory() -> Trajectory:
    prompt = PROTOCOL.prompt(TASK)
    trajectory = Trajectory(task=TASK, prompt=prompt.parts, prompt_ids=prompt.token_ids)
    rng = tiny.random.Random(4)
    for number in range(3):
        ids = (*CHAT.tokenizer(f" who {number:02d} city").input_ids, END)
        images = [ImageHit("page", thumbnail=tiny.noise(28 + 28 * i, 56, rng)) for i in range(2)]
        observation = Observation(tool=ActionKind.IMAGE_SEARCH, hits=tuple(images))
        reply = PROTOCOL.reply(observation, TASK, ids) if number < 2 else None
        turn = Turn(
            token_ids=ids,
            logprobs=tuple(-0.1 * i for i in range(len(ids))),
            finish_reason=FinishReason.STOP,
            text=CHAT.decode(ids),
            action=Action(ActionKind.IMAGE_SEARCH if reply else ActionKind.NONE),
            observation=observation if reply else None,
            reply=reply.parts if reply else (),
            reply_ids=reply.token_ids if reply else (),
        )
        trajectory.turns.append(turn)
    return trajectory


WHOLE = _trajectory()
TOTAL = len(WHOLE.completion_ids)


@pytest.mark.parametrize("length", range(TOTAL + 3))
def test_a_cut_is_a_prefix_that_splits_no_image(length: int) -> None:
    cut = cut_response(WHOLE, length, CHAT)
    ids = cut.completion_ids
    assert ids == WHOLE.completion_ids[: len(ids)] and len(ids) <= length
    assert cut.token_ids.count(CHAT.image_pad_id) == sum(image.num_tokens for image in cut.images)
    assert [image.key for image in cut.images] == [image.key for image in WHOLE.images][: len(cut.images)]
    shortest = min(length, TOTAL) - max(image.num_tokens for image in WHOLE.images)
    assert len(ids) > shortest, "more was cut than the image in which the cut falls"
    assert len(cut.loss_mask) == len(cut.logprobs) == len(ids)
    assert cut.loss_mask == WHOLE.loss_mask[: len(ids)]


@pytest.mark.parametrize("length", [1, 3, 4, 40, TOTAL - 2, TOTAL])
def test_a_reward_sees_only_what_the_cut_left(length: int) -> None:
    cut = cut_response(WHOLE, length, CHAT)
    for turn, text in zip(cut.turns, cut.responses, strict=True):
        assert text == CHAT.decode(turn.token_ids[:-1])
    if length == TOTAL:
        assert cut.responses == WHOLE.responses


@given(st.lists(st.sampled_from([1, 2, END]), max_size=20))
def test_attention_reaches_to_the_last_turn_end(ids: list[int]) -> None:
    attention = UpstreamLimits().attended(ids, END)
    kept = ids[: sum(attention)]
    assert attention == sorted(attention, reverse=True) and ids.count(END) == kept.count(END)
    assert not kept or kept[-1] == END


def test_an_empty_response_stays_empty() -> None:
    empty = cut_response(Trajectory(task=TASK, prompt=(), prompt_ids=()), 10, CHAT)
    assert empty.completion_ids == [] and empty.images == []
    assert isinstance(WHOLE.images[0], ImageInput)
