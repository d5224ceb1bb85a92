"""What MMSearch-R1 makes of trajectories: the arrays that it trains on, and its training metrics."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.observation import Observation
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.rollout.upstream_limits import UpstreamLimits


class ResponseArrays(NamedTuple):
    """A response padded to upstream's fixed length, each `(length,)`."""

    ids: list[int]
    response_mask: list[int]
    attention_mask: list[int]
    loss_mask: list[int]


def response_arrays(trajectory: Trajectory, length: int, *, pad_id: int, turn_end_id: int) -> ResponseArrays:
    """Upstream's response tensors of a trajectory that was cut to `length` before (`UpstreamLimits.finish`)."""
    ids = trajectory.completion_ids
    padding = [0] * (length - len(ids))
    attention = [*UpstreamLimits().attended(ids, turn_end_id), *padding]
    mask = [*trajectory.loss_mask, *padding]
    loss = [a * m for a, m in zip(attention, mask, strict=True)]
    return ResponseArrays([*ids, *[pad_id] * len(padding)], mask, attention, loss)


def upstream_batch_metrics(
    trajectories: Sequence[Trajectory], rewards: Sequence[float], format_penalty: float = 0.1
) -> dict[str, float]:
    """MMSearch-R1's own training metrics under its own names, to lay curves over published ones.

    They differ from `summarize`: `search_ratio_text` and `_image` leave out trajectories that used both tools,
    `search_fail_ratio_*` counts trajectories over a denominator padded by 1e-5, and `answer_acc` guesses right answers
    from the reward (above `format_penalty`), which a large search penalty defeats.
    """
    rows = [
        (_searches(trajectory, ActionKind.IMAGE_SEARCH), _searches(trajectory, ActionKind.TEXT_SEARCH))
        for trajectory in trajectories
    ]
    threshold = format_penalty + 1e-4
    lengths = [_response_length(trajectory) for trajectory in trajectories]
    own = {
        "correct_threshold": threshold,
        "answer_acc": _mean(reward > threshold for reward in rewards),
        "search_ratio_text": _mean(bool(text) and not image for image, text in rows),
        "search_ratio_image": _mean(bool(image) and not text for image, text in rows),
        "search_ratio_mix": _mean(bool(image and text) for image, text in rows),
        "search_fail_ratio_text": _upstream_failures([text for _, text in rows]),
        "search_fail_ratio_image": _upstream_failures([image for image, _ in rows]),
    }
    return {
        **{f"critic/mmsearch_r1/{name}": value for name, value in own.items()},
        **_spread("critic/score", rewards),
        **_spread("critic/rewards", rewards),
        **_spread("response_length", lengths),
    }


def _searches(trajectory: Trajectory, tool: str) -> list[Observation]:
    return [observation for observation in trajectory.observations if observation.tool == tool]


def _response_length(trajectory: Trajectory) -> int:
    return sum(len(turn.token_ids) for turn in trajectory.turns)


def _upstream_failures(searches: Sequence[Sequence[Observation]]) -> float:
    failed = sum(any(observation.failure is not None for observation in calls) for calls in searches)
    return failed / (sum(bool(calls) for calls in searches) + 1e-5)


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    return {f"{name}/mean": _mean(values), f"{name}/max": float(max(values)), f"{name}/min": float(min(values))}


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)
