"""An infrastructure failure can be left out of the loss, is counted apart, and says nothing about the policy."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from servers import Trainers

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.completion import Completion, SamplingParams
from mmsearch_trl.core.errors import EngineError, EngineLost
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.observation import Failure, FailureKind, Observation
from mmsearch_trl.core.trajectory import StopReason
from mmsearch_trl.trainer.batch import loss_mask


FAMILY = tiny.qwen25()


class FailingTools(tiny.CannedTools):
    """Image search answers; text search fails in the way it was made with."""

    def __init__(self, kind: FailureKind) -> None:
        super().__init__()
        self._kind = kind

    async def text_search(self, query: str) -> Observation:
        await asyncio.sleep(0)
        return self._observe(Observation(tool=ActionKind.TEXT_SEARCH, failure=Failure(self._kind, "no")))


class FailingEngine(tiny.WrappedEngine):
    """Fails a third of all turns, chosen by their seeds."""

    async def generate(
        self, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: SamplingParams
    ) -> Completion:
        if random.Random(sampling.seed).random() < 0.35:
            raise EngineError("out of memory")
        return await super().generate(token_ids, images, sampling)


def _batch(
    build: Trainers, tmp_path: Path, tools: Any = None, *, failing: bool = False, **overrides: Any
) -> tuple[tiny.MMSearchGRPOTrainer, tiny.Batch]:
    given = [task for task in tiny.tasks(4) for _ in range(2)]
    settings = {"per_device_train_batch_size": 8} | overrides
    trainer = build(FAMILY, tmp_path, given, tools=tools, **settings)
    if failing:
        tiny.wrap_engine(trainer, FailingEngine)
    return trainer, tiny.rollout_batch(trainer, list(trainer.train_dataset))


@pytest.mark.parametrize("kind", [FailureKind.TIMEOUT, FailureKind.INVALID_QUERY], ids=str)
@pytest.mark.parametrize("masked", [True, False])
def test_tokens_from_a_failed_search_on_are_left_out(
    kind: FailureKind, masked: bool, build: Trainers, tmp_path: Path
) -> None:
    _, batch = _batch(build, tmp_path, FailingTools(kind), mask_infrastructure_failures=masked)
    failures = 0
    for trajectory, row in zip(batch.trajectories, batch.output["tool_mask"].tolist(), strict=True):
        expected, healthy = [], 1
        for turn in trajectory.turns:
            failed = turn.observation is not None and turn.observation.failure is not None
            failures += failed
            if failed and masked and kind is FailureKind.TIMEOUT:
                healthy = 0
            expected += [healthy] * len(turn.token_ids) + [0] * len(turn.reply_ids)
        assert row[: len(expected)] == expected == loss_mask(trajectory, tiny.LIMITS, mask_failures=masked)
    assert failures


def test_a_failed_rollout_is_out_of_its_group_s_baseline(build: Trainers, tmp_path: Path) -> None:
    trainer, batch = _batch(build, tmp_path, failing=True, num_generations=4, scale_rewards="none")
    failed = [trajectory.stop is StopReason.FAILED for trajectory in batch.trajectories]
    assert 0 < sum(failed) < len(failed)
    rewards = tiny.by_letters([trajectory.messages for trajectory in batch.trajectories])
    for first in range(0, 8, 4):
        group = range(first, first + 4)
        scored = [rewards[i] for i in group if not failed[i]]
        for i in group:
            expected = 0.0 if failed[i] else rewards[i] - sum(scored) / len(scored)
            assert float(batch.output["advantages"][i]) == pytest.approx(expected, abs=1e-6)
            if failed[i]:
                assert not batch.output["tool_mask"][i][: len(batch.trajectories[i].completion_ids)].any()
    assert trainer._metrics["train"]["rollout/failed"] == [sum(failed) / len(failed)]


def test_an_engine_that_fails_every_turn_ends_training_and_moves_no_weight(build: Trainers, tmp_path: Path) -> None:
    trainer = build(FAMILY, tmp_path)
    tiny.wrap_engine(trainer, DeadEngine)
    before = trainer.model.lm_head.weight.clone()
    with pytest.raises(EngineLost, match="the first: gone"):
        trainer.train()
    assert before.equal(trainer.model.lm_head.weight)


class DeadEngine(tiny.WrappedEngine):
    async def generate(
        self, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: SamplingParams
    ) -> Completion:
        raise EngineError("gone")


def test_failures_are_counted_apart(build: Trainers, tmp_path: Path) -> None:
    tools = FailingTools(FailureKind.UNAVAILABLE)
    trainer, batch = _batch(build, tmp_path, tools)
    observations = [o for trajectory in batch.trajectories for o in trajectory.observations]
    rate = sum(o.failure is not None for o in observations) / len(observations)
    assert trainer._metrics["train"]["search/failure_rate"] == [pytest.approx(rate)]
