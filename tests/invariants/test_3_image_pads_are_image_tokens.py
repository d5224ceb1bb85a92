"""Image pads in the ids are the tokens of the images, in order; a sampled id is never a vision token."""

import asyncio
from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from servers import Trainers

from mmsearch_trl.core.completion import SamplingParams
from mmsearch_trl.engine.scripted import ScriptedEngine
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.loop import run_trajectory


FAMILIES = [tiny.qwen25(), tiny.qwen3()]
LIMITS = Limits(max_turns=4, max_turn_tokens=8, max_response_tokens=500, image_search_limit=3)


def _runs(ids: list[int], pad: int, start: int, end: int) -> list[int]:
    """Lengths of the pad runs; each stands between a vision start and a vision end."""
    runs = []
    for i, token in enumerate(ids):
        if token == pad and ids[i - 1] != pad:
            assert ids[i - 1] == start
            runs.append(0)
        if token == pad:
            runs[-1] += 1
            assert ids[i + 1] in (pad, end)
    return runs


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_pads_are_features_in_order_in_the_batch_that_is_trained(
    family: tiny.Family, build: Trainers, tmp_path: Path
) -> None:
    trainer = build(family, tmp_path, tiny.tasks(8, images=(1, 2, 0)), per_device_train_batch_size=8)
    batch = tiny.rollout_batch(trainer, list(trainer.train_dataset))
    names = ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>")
    pad, start, end = trainer.rollouter.protocol.chat.tokenizer.convert_tokens_to_ids(list(names))
    grids = iter(batch.output["image_grid_thw"].tolist())
    for trajectory, count in zip(batch.trajectories, batch.output["num_images"], strict=True):
        expected = [image.num_tokens for image in trajectory.images]
        assert _runs(trajectory.token_ids, pad, start, end) == expected
        own = [next(grids) for _ in range(count)]
        assert [t * h * w // 4 for t, h, w in own] == expected
    assert next(grids, None) is None
    assert batch.output["mm_token_type_ids"].sum() == sum(i.num_tokens for t in batch.trajectories for i in t.images)


_PROTOCOL = FAMILIES[0].restless()
_VISION = sorted(_PROTOCOL.chat.vision_ids)
_ANY_ID = st.one_of(
    st.sampled_from(_VISION), st.integers(0, _PROTOCOL.chat.vocabulary_size + 40), st.just(_PROTOCOL.chat.turn_end_id)
)


@given(st.lists(st.lists(_ANY_ID, max_size=8), min_size=4, max_size=4))
def test_whatever_an_engine_samples_no_vision_token_enters_the_transcript(turns: list[list[int]]) -> None:
    engine = ScriptedEngine(turns, [_PROTOCOL.chat.turn_end_id])
    [task] = tiny.tasks(1)
    rollout = run_trajectory(task, engine, _PROTOCOL, tiny.CannedTools(), LIMITS, SamplingParams(max_tokens=8))
    trajectory = asyncio.run(rollout)
    for turn in trajectory.turns:
        assert _PROTOCOL.chat.vision_ids.isdisjoint(turn.token_ids)
        assert all(token < _PROTOCOL.chat.vocabulary_size for token in turn.token_ids)
        assert len(turn.token_ids) == len(turn.logprobs)
    assert trajectory.token_ids.count(_PROTOCOL.chat.image_pad_id) == sum(i.num_tokens for i in trajectory.images)
