"""From trajectories to what TRL's `_generate` returns, and the checks that replace TRL's silent fall-backs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.trajectory import StopReason, Trajectory
from mmsearch_trl.engine.images import ImageEncoder
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.trainer.rewards import messages_of


class Generation(NamedTuple):
    """TRL 1.16's 8-tuple of `GRPOTrainer._generate`, in its order; one entry per trajectory.

    `images` holds every image of a trajectory, as `ImageInput`, in the order of its pads. `tool_images` equals it: TRL
    reads only whether it is empty, to choose the branch that builds M-RoPE inputs from prompt and completion together.
    """

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    tool_mask: list[list[int]]
    completions: list[list[dict[str, Any]]]
    logprobs: list[list[float]]
    extra_fields: dict[str, list[Any]]
    images: list[list[ImageInput]] | None
    tool_images: list[list[ImageInput]]


def generation(
    trajectories: Sequence[Trajectory],
    chat: ChatEncoder,
    limits: Limits,
    *,
    mask_failures: bool,
    mask_truncated: bool = False,
) -> Generation:
    """Lay trajectories out for TRL.

    A trajectory that has no token (its rollout failed before the first turn) becomes one turn-end token outside the
    loss, since TRL cannot hold an empty row. So does a straggler, whose tokens would be forwarded for nothing.

    Raises:
        AssertionError: A trajectory's ids and images disagree.
    """
    trajectories = [replace(t, turns=[]) if t.stop is StopReason.STRAGGLER else t for t in trajectories]
    masks = [loss_mask(t, limits, mask_failures=mask_failures, mask_truncated=mask_truncated) for t in trajectories]
    rows = [_row(*pair, chat, limits) for pair in zip(trajectories, masks, strict=True)]
    prompt_ids, completion_ids, tool_mask, logprobs = (list(column) for column in zip(*rows, strict=True))
    images = [trajectory.images for trajectory in trajectories]
    return Generation(
        prompt_ids=prompt_ids,
        completion_ids=completion_ids,
        tool_mask=tool_mask,
        completions=[messages_of(trajectory) for trajectory in trajectories],
        logprobs=logprobs,
        extra_fields={},
        images=images if any(images) else None,
        tool_images=images,
    )


def loss_mask(
    trajectory: Trajectory, limits: Limits, *, mask_failures: bool, mask_truncated: bool = False
) -> list[int]:
    """1 on the sampled tokens that are trained, `(c,)`.

    With `mask_failures`, tokens from the turn on whose search failed through the infrastructure's fault are left out,
    and so is everything of a rollout that the engine broke: neither is the policy's doing. With `mask_truncated`, so
    is everything of a rollout that ended for want of tokens.
    """
    if mask_truncated and trajectory.truncated:
        return [0] * len(trajectory.completion_ids)
    if not mask_failures:
        return trajectory.loss_mask
    if trajectory.stop is StopReason.FAILED:
        return [0] * len(trajectory.completion_ids)
    mask: list[int] = []
    healthy = 1
    for turn in trajectory.turns:
        failure = turn.observation.failure if turn.observation else None
        if failure is not None and limits.excuses(failure):
            healthy = 0
        mask += [healthy] * len(turn.token_ids) + [0] * len(turn.reply_ids)
    return mask


def _row(
    trajectory: Trajectory, trained: list[int], chat: ChatEncoder, limits: Limits
) -> tuple[list[int], list[int], list[int], list[float]]:
    prompt = list(trajectory.prompt_ids) or [chat.turn_end_id]
    completion = trajectory.completion_ids
    if not completion:
        return prompt, [chat.turn_end_id], [0], [0.0]
    attended = limits.attended(completion, chat.turn_end_id)
    mask = [a * m for a, m in zip(attended, trained, strict=True)]
    logprobs = trajectory.logprobs
    assert len(completion) == len(mask) == len(logprobs), trajectory.task.id
    pads = (*trajectory.prompt_ids, *completion).count(chat.image_pad_id)
    assert pads == sum(image.num_tokens for image in trajectory.images), trajectory.task.id
    return prompt, completion, mask, logprobs


@contextmanager
def images_as_encoded(processor: Any, images: ImageEncoder) -> Iterator[None]:
    """Have TRL take the images as they were processed for the rollout; a language model's tokenizer has none."""
    image_processor = getattr(processor, "image_processor", None)
    if image_processor is None:
        yield
        return
    processor.image_processor = EncodedImages(images)
    try:
        yield
    finally:
        processor.image_processor = image_processor


class EncodedImages:
    """Stands in for the image processor while TRL lays out a batch: every image has been processed by then."""

    def __init__(self, images: ImageEncoder) -> None:
        self._images = images
        self.merge_size = images.merge_size

    def __call__(self, images: list[ImageInput], return_tensors: str) -> dict[str, torch.Tensor]:
        features = [self._images.features(image) for image in images]
        return {
            "pixel_values": torch.cat([feature.pixel_values for feature in features]),
            "image_grid_thw": torch.stack([feature.grid_thw for feature in features]),
        }
