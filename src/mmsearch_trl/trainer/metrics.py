"""What a rollout batch is judged by, under the names of TRL's logs.

Every rank contributes one row of numbers per trajectory; sums are gathered in one call, so ranks cannot fall out of
step and means are exact over all trajectories.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.completion import FinishReason
from mmsearch_trl.core.ratio import Ratio
from mmsearch_trl.core.trajectory import StopReason, Trajectory
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.rollout.rollouter import RolloutReport


def rollout_metrics(report: RolloutReport, ranks: Ranks, tools: Sequence[str] | None = ()) -> dict[str, float]:
    """Means over the trajectories of all ranks, the time of the slowest, and the share in which engines generated.

    Args:
        tools: Names of the tools besides the searches: of each, the share of trajectories that call it, and the share
            of its calls that fail, the policy's own mistakes among them. None where nothing can be called: nothing is
            said of searches.
    """
    names = _ROLLOUT if tools is None else (*_SEARCH, *_ROLLOUT)
    columns = zip(*(_row(trajectory, tools) for trajectory in report.trajectories), strict=True)
    sums = [math.fsum(column) for column in columns]
    rows = ranks.rows([*sums, len(report.trajectories), report.seconds, report.engine_busy_seconds])
    *totals, count, seconds, busy = (math.fsum(column) for column in zip(*rows, strict=True))
    metrics = {name: total / count for name, total in zip(names, totals, strict=False)}
    of_tools = iter(totals[len(names) :])
    for tool, used, calls, failed in zip(tools or (), of_tools, of_tools, of_tools, strict=True):
        metrics[f"tool/{tool}/ratio"] = used / count
        metrics[f"tool/{tool}/calls"] = calls
        metrics[f"tool/{tool}/failure_rate"] = Ratio(failed, calls)
    metrics["rollout/seconds"] = max(row[-2] for row in rows)
    metrics["rollout/engine_busy"] = busy / seconds if seconds else 0.0
    return metrics


def completion_metrics(trajectories: Sequence[Trajectory], ranks: Ranks) -> tuple[dict[str, float], int]:
    """TRL's `completions/*` over sampled tokens, and the tokens of all ranks seen by the model.

    A completion is terminated where the model ended its last turn, by its end of turn or, as in Search-R1, by a tag,
    and not for want of tokens to go on with.
    """
    lengths = torch.tensor(
        [[float(sum(t.loss_mask)), float(_ended(t)), float(len(t.prompt_ids))] for t in trajectories]
    )
    gathered = ranks.gather(lengths).cpu()
    sampled, terminated = gathered[:, 0], gathered[:, 1].bool()
    whole = sampled[terminated] if terminated.any() else torch.zeros(1)
    metrics = {
        "completions/mean_length": float(sampled.mean()),
        "completions/min_length": float(sampled.min()),
        "completions/max_length": float(sampled.max()),
        "completions/clipped_ratio": float((~terminated).float().mean()),
        "completions/mean_terminated_length": float(whole.mean()),
        "completions/min_terminated_length": float(whole.min()),
        "completions/max_terminated_length": float(whole.max()),
    }
    return metrics, int(gathered[:, 0].sum() + gathered[:, 2].sum())


def _ended(trajectory: Trajectory) -> bool:
    if not trajectory.turns or trajectory.stop is StopReason.TOKEN_LIMIT:
        return False
    return trajectory.turns[-1].finish_reason is FinishReason.STOP


def accuracy_by_search(
    trajectories: Sequence[Trajectory], accuracies: Sequence[float | None], ranks: Ranks
) -> Iterator[tuple[str, float]]:
    """`accuracy/searched` and `accuracy/unsearched` of what was finished; a group without trajectories is left out.

    Where nothing could be searched with, both are.
    """
    right, count = [0.0, 0.0], [0.0, 0.0]
    for trajectory, accuracy in zip(trajectories, accuracies, strict=True):
        if not trajectory.aborted and (searched := trajectory.searched) is not None:
            right[searched] += accuracy or 0.0
            count[searched] += 1
    totals = ranks.sum([*right, *count])
    for name, correct, number in zip(
        ("accuracy/unsearched", "accuracy/searched"), totals[:2], totals[2:], strict=True
    ):
        if number:
            yield name, Ratio(correct, number)


_SEARCH = ("search/ratio", "search/image_ratio", "search/text_ratio")
_ROLLOUT = (
    "rollout/turns",
    "rollout/answered",
    "rollout/turns_without_action",
    "rollout/failed",
    "rollout/stragglers",
    "rollout/truncated",
)


def _row(trajectory: Trajectory, tools: Sequence[str] | None) -> list[float]:
    """`_SEARCH`, where anything can be called, `_ROLLOUT`, and of each tool: whether it was called, how often, and how
    often in vain."""
    called = Counter(observation.tool for observation in trajectory.observations)
    searched = {observation.tool for observation in trajectory.searches}
    failed = Counter(observation.tool for observation in trajectory.observations if observation.failure is not None)
    ratios = (bool(searched), ActionKind.IMAGE_SEARCH in searched, ActionKind.TEXT_SEARCH in searched)
    return [
        *(float(ratio) for ratio in (ratios if tools is not None else ())),
        float(len(trajectory.turns)),
        float(trajectory.stop is StopReason.ANSWERED),
        float(sum(turn.action.kind is ActionKind.NONE for turn in trajectory.turns)),
        float(trajectory.stop is StopReason.FAILED),
        float(trajectory.stop is StopReason.STRAGGLER),
        float(trajectory.truncated),
        *(float(number) for tool in tools or () for number in (tool in called, called[tool], failed[tool])),
    ]
