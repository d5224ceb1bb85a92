"""What a rollout batch is judged by, under the names of TRL's logs.

Every rank contributes one row of numbers per trajectory; sums are gathered in one call, so ranks cannot fall out of
step and means are exact over all trajectories.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.completion import FinishReason
from mmsearch_trl.core.trajectory import StopReason, Trajectory


Gather = Callable[[torch.Tensor], torch.Tensor]


def rollout_metrics(
    trajectories: Sequence[Trajectory],
    *,
    seconds: float,
    engine_busy_seconds: float,
    gather: Gather,
    device: torch.device,
) -> dict[str, float]:
    """Means over the trajectories of all ranks."""
    rows = [_row(trajectory) for trajectory in trajectories]
    sums = torch.tensor([math.fsum(column) for column in zip(*rows, strict=True)] + [float(len(rows))])
    times = torch.tensor([seconds, engine_busy_seconds])
    gathered = gather(torch.cat([sums, times]).to(device)).view(-1, len(sums) + len(times)).cpu()
    totals = gathered.sum(dim=0)
    count = totals[len(sums) - 1]
    metrics = {name: float(total / count) for name, total in zip(_COLUMNS, totals, strict=False)}
    metrics["rollout/seconds"] = float(gathered[:, -2].max())
    metrics["rollout/engine_busy"] = float(totals[-1] / totals[-2]) if totals[-2] else 0.0
    return metrics


def completion_metrics(
    trajectories: Sequence[Trajectory], *, gather: Gather, device: torch.device
) -> tuple[dict[str, float], int]:
    """TRL's `completions/*` over sampled tokens, and the tokens of all ranks seen by the model.

    A completion is terminated where the model ended its last turn, by its end of turn or, as in Search-R1, by a tag,
    and not for want of tokens to go on with.
    """
    lengths = torch.tensor(
        [[float(sum(t.loss_mask)), float(_ended(t)), float(len(t.prompt_ids))] for t in trajectories]
    )
    gathered = gather(lengths.to(device)).cpu()
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
    trajectories: Sequence[Trajectory], accuracies: Sequence[float], *, gather: Gather, device: torch.device
) -> Iterator[tuple[str, float]]:
    """`accuracy/searched` and `accuracy/unsearched` of what was finished; a group without trajectories is left out."""
    sums = torch.zeros(2, 2)
    for trajectory, accuracy in zip(trajectories, accuracies, strict=True):
        if trajectory.stop is StopReason.STRAGGLER:
            continue
        sums[int(any(True for _ in trajectory.observations))] += torch.tensor([accuracy, 1.0])
    totals = gather(sums.to(device).view(1, 4)).view(-1, 2, 2).sum(dim=0)
    for name, (right, count) in zip(("accuracy/unsearched", "accuracy/searched"), totals.tolist(), strict=True):
        if count:
            yield name, right / count


_COLUMNS = (
    "search/ratio",
    "search/image_ratio",
    "search/text_ratio",
    "rollout/turns",
    "rollout/answered",
    "rollout/turns_without_action",
    "rollout/failed",
    "rollout/stragglers",
)


def _row(trajectory: Trajectory) -> list[float]:
    tools = {observation.tool for observation in trajectory.observations}
    return [
        float(bool(tools)),
        float(ActionKind.IMAGE_SEARCH in tools),
        float(ActionKind.TEXT_SEARCH in tools),
        float(len(trajectory.turns)),
        float(trajectory.stop is StopReason.ANSWERED),
        float(sum(turn.action.kind is ActionKind.NONE for turn in trajectory.turns)),
        float(trajectory.stop is StopReason.FAILED),
        float(trajectory.stop is StopReason.STRAGGLER),
    ]
