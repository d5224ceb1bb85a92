"""Supervised batches from trajectories: only what the assistant said is learned, in the tokens of a rollout."""

from collections.abc import Sequence

import torch

from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.rollout.trajectory import Trajectory


def collate(trajectories: Sequence[Trajectory], chat: ChatEncoder, pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded inputs of a Qwen-VL model, for `trl.SFTTrainer`.

    Returns:
        `input_ids`, `attention_mask`, `mm_token_type_ids` and `labels` (-100 off the loss mask), each `(b, t)`;
        `pixel_values` `(patches, channels)` and `image_grid_thw` `(images, 3)` where there are images.
    """
    width = max(len(trajectory.token_ids) for trajectory in trajectories)
    ids = torch.full((len(trajectories), width), pad_id)
    attention = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for row, trajectory in enumerate(trajectories):
        tokens = torch.tensor(trajectory.token_ids)
        mask = torch.tensor([0] * len(trajectory.prompt_ids) + trajectory.loss_mask, dtype=torch.bool)
        ids[row, : len(tokens)] = tokens
        attention[row, : len(tokens)] = 1
        labels[row, : len(tokens)] = tokens.masked_fill(~mask, -100)
    batch = {
        "input_ids": ids,
        "attention_mask": attention,
        "labels": labels,
        "mm_token_type_ids": (ids == chat.image_pad_id).long() * attention,
    }
    features = [chat.images.features(image) for trajectory in trajectories for image in trajectory.images]
    if features:
        batch["pixel_values"] = torch.cat([feature.pixel_values for feature in features])
        batch["image_grid_thw"] = torch.stack([feature.grid_thw for feature in features])
    return batch
