"""Same seed, same tool answers, same batch: the same trajectories, whatever finished first."""

import random
from pathlib import Path
from typing import Any

import pytest
import tiny
from servers import Trainers

from mmsearch_trl.core.trajectory import Trajectory


FAMILIES = [tiny.qwen25(), tiny.qwen3()]


def _roll_out(
    family: tiny.Family, out: Path, latency_seed: int | None, build: Any = tiny.trainer, **overrides: Any
) -> list[Trajectory]:
    rng = random.Random(latency_seed)
    tools = tiny.CannedTools(delay=None if latency_seed is None else lambda: rng.random() * 0.04)
    settings = {"per_device_train_batch_size": 8} | overrides
    trainer = build(family, out, tiny.tasks(8, images=(1, 0, 2)), tools=tools, **settings)
    batch = tiny.rollout_batch(trainer, list(trainer.train_dataset))
    trainer.close()
    return batch.trajectories


def _story(trajectories: list[Trajectory]) -> list[Any]:
    return [(t.token_ids, t.loss_mask, [image.key for image in t.images], t.stop, t.responses) for t in trajectories]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_trajectories_do_not_depend_on_what_finished_first(
    family: tiny.Family, build: Trainers, tmp_path: Path
) -> None:
    first = _roll_out(family, tmp_path, None, build)
    assert any(trajectory.images for trajectory in first) and len({len(t.turns) for t in first}) > 1
    for latency_seed in (1, 2):
        again = _roll_out(family, tmp_path, latency_seed, build)
        assert _story(again) == _story(first)
        for one, other in zip(first, again, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_trajectories_do_not_depend_on_how_turns_are_batched(tmp_path: Path) -> None:
    story = _story(_roll_out(FAMILIES[0], tmp_path, None))
    assert _story(_roll_out(FAMILIES[0], tmp_path, None, max_rollout_batch=3)) == story


def test_another_seed_gives_other_trajectories(tmp_path: Path) -> None:
    assert _story(_roll_out(FAMILIES[0], tmp_path, None)) != _story(_roll_out(FAMILIES[0], tmp_path, None, seed=8))


def test_rollouts_of_one_prompt_differ(build: Trainers, tmp_path: Path) -> None:
    trainer = build(FAMILIES[0], tmp_path, tiny.tasks(1) * 4)
    batch = tiny.rollout_batch(trainer, list(trainer.train_dataset))
    assert len({tuple(trajectory.completion_ids) for trajectory in batch.trajectories}) == 4
    again = tiny.rollout_batch(trainer, list(trainer.train_dataset))
    assert _story(again.trajectories) != _story(batch.trajectories), "the next generation draws anew"
