"""Evaluating without a trainer: tasks in, scored trajectories out.

A task's sampling depends on the seed and the task's id alone, so neither the order of the tasks nor how they are split
into batches changes a result.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from mmsearch_trl.core.reward import RewardParts, ScoredTrajectory
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.engine.base import Engine
from mmsearch_trl.protocol.base import TurnProtocol
from mmsearch_trl.rewards.rule_reward import Rule
from mmsearch_trl.rollout.compat import cut_response
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.loop import Tools, named_sampling, run_batch


async def evaluate_tasks(
    tasks: Sequence[Task],
    engine: Engine,
    protocol: TurnProtocol,
    tools: Tools,
    limits: Limits,
    reward: Rule,
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[ScoredTrajectory]:
    """Roll out and score all tasks at once; every task comes back exactly once, in order.

    Args:
        temperature: 0 is greedy.
        seed: Used at a temperature above 0.
    """
    samplings = [named_sampling(limits, f"{seed}/{task.id}", temperature) for task in tasks]
    trajectories = await run_batch(tasks, engine, protocol, tools, limits, samplings)
    if limits.compat:
        trajectories = [cut_response(t, limits.max_response_tokens, protocol.chat) for t in trajectories]
    return [_scored(trajectory, reward) for trajectory in trajectories]


def reward_parts(scored: ScoredTrajectory) -> RewardParts:
    """The score as `summarize` takes it; NaN for a part that nobody judged."""
    return RewardParts(
        scored.reward or 0.0,
        scored.rewards.get("accuracy", math.nan),
        scored.rewards.get("format", math.nan),
        int(scored.rewards.get("searches", 0)),
        None,
    )


def without_images(trajectory: Trajectory) -> Trajectory:
    """What means are made of, cheap to keep and to send: no image, no message, no hit."""
    turns = [
        replace(turn, reply=(), observation=turn.observation and replace(turn.observation, hits=()))
        for turn in trajectory.turns
    ]
    return replace(trajectory, task=replace(trajectory.task, images=(), extra={}), prompt=(), turns=turns)


def _scored(trajectory: Trajectory, reward: Rule) -> ScoredTrajectory:
    parts = reward.score_messages(trajectory.messages, trajectory.task.answers, None)
    rewards = {"accuracy": parts.accuracy, "format": parts.format, "searches": float(parts.searches)}
    return ScoredTrajectory(trajectory=trajectory, reward=parts.reward, rewards=rewards)
