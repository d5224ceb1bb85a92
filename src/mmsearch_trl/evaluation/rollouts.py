"""Evaluating without a trainer: tasks in, scored trajectories out.

A task's sampling depends on the seed and the task's id alone, so neither the order of the tasks nor how they are split
into batches changes a result.
"""

from collections.abc import Sequence

from mmsearch_trl.core.reward import ScoredTrajectory
from mmsearch_trl.core.task import Task
from mmsearch_trl.engine.base import Engine
from mmsearch_trl.protocol.base import TurnProtocol
from mmsearch_trl.rewards.rule_reward import Rule
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
    return [
        ScoredTrajectory(trajectory=t, parts=reward.score_messages(t.messages, t.task.answers, None))
        for t in trajectories
    ]
