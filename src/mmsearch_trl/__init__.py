"""Teach vision-language models to search only when they must: MMSearch-R1 and Search-R1 on TRL.

The public names are imported when they are first used, so that `import mmsearch_trl` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from mmsearch_trl.core.task import Task
    from mmsearch_trl.core.trajectory import Trajectory
    from mmsearch_trl.engine.transformers import TransformersEngine
    from mmsearch_trl.protocol.chat import ChatEncoder
    from mmsearch_trl.protocol.direct import DirectProtocol
    from mmsearch_trl.protocol.mmsearch import MMSearchProtocol
    from mmsearch_trl.protocol.search_r1 import SearchR1Protocol
    from mmsearch_trl.rewards.direct import DirectRewardConfig
    from mmsearch_trl.rewards.mmsearch import RewardConfig
    from mmsearch_trl.rewards.rule_reward import RuleReward
    from mmsearch_trl.rewards.search_r1 import SearchR1RewardConfig
    from mmsearch_trl.rollout.limits import Limits
    from mmsearch_trl.rollout.loop import run_batch, run_trajectory
    from mmsearch_trl.search.runtime import SearchRuntime
    from mmsearch_trl.trainer.config import MMSearchGRPOConfig
    from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer

__version__ = "0.1.0"

_HOMES = {
    "ChatEncoder": "protocol.chat",
    "DirectProtocol": "protocol.direct",
    "DirectRewardConfig": "rewards.direct",
    "Limits": "rollout.limits",
    "MMSearchGRPOConfig": "trainer.config",
    "MMSearchGRPOTrainer": "trainer.grpo",
    "MMSearchProtocol": "protocol.mmsearch",
    "RewardConfig": "rewards.mmsearch",
    "RuleReward": "rewards.rule_reward",
    "SearchR1Protocol": "protocol.search_r1",
    "SearchR1RewardConfig": "rewards.search_r1",
    "SearchRuntime": "search.runtime",
    "Task": "core.task",
    "Trajectory": "core.trajectory",
    "TransformersEngine": "engine.transformers",
    "run_batch": "rollout.loop",
    "run_trajectory": "rollout.loop",
}

__all__ = [
    "ChatEncoder",
    "DirectProtocol",
    "DirectRewardConfig",
    "Limits",
    "MMSearchGRPOConfig",
    "MMSearchGRPOTrainer",
    "MMSearchProtocol",
    "RewardConfig",
    "RuleReward",
    "SearchR1Protocol",
    "SearchR1RewardConfig",
    "SearchRuntime",
    "Task",
    "Trajectory",
    "TransformersEngine",
    "run_batch",
    "run_trajectory",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
