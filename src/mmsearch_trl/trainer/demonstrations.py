"""Supervised batches from trajectories: only what the assistant said is learned, in the tokens of a rollout."""

from collections.abc import Sequence

import torch

from mmsearch_trl.core.action import Action
from mmsearch_trl.core.completion import FinishReason
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.observation import Observation
from mmsearch_trl.core.trajectory import StopReason, Trajectory, Turn
from mmsearch_trl.data.demonstrations import Demonstration
from mmsearch_trl.protocol.base import SearchProtocol, TurnProtocol
from mmsearch_trl.protocol.chat import ChatEncoder, Encoded


def as_trajectory(demonstration: Demonstration, protocol: TurnProtocol) -> Trajectory:
    """The trajectory of a policy that said this; log-probs are 0.

    Raises:
        UserError: a turn does not ask for the search that follows it, the last turn asks for a search, or there are
            several turns and the protocol has one.
    """
    task, texts = demonstration.task, demonstration.texts
    prompt = protocol.prompt(task)
    trajectory = Trajectory(
        task=task,
        prompt=prompt.parts,
        prompt_ids=prompt.token_ids,
        stop=StopReason.ANSWERED,
        has_tools=isinstance(protocol, SearchProtocol),
    )
    for number, text in enumerate(texts):
        last = number == len(texts) - 1
        cut = last and demonstration.cut
        ids = (*protocol.chat.tokenizer(text, add_special_tokens=False)["input_ids"],)
        ids += () if cut else (protocol.chat.turn_end_id,)
        action = protocol.read(text)
        observation = None if last else demonstration.observations[number]
        _check(action, observation, number, last=last)
        reply = None if last else _reply(demonstration, number, ids, protocol)
        trajectory.turns.append(
            Turn(
                token_ids=ids,
                logprobs=(0.0,) * len(ids),
                finish_reason=FinishReason.LENGTH if cut else FinishReason.STOP,
                text=text,
                action=action,
                observation=observation,
                reply=reply.parts if reply else (),
                reply_ids=reply.token_ids if reply else (),
            )
        )
    return trajectory


def _check(action: Action, observation: Observation | None, number: int, *, last: bool) -> None:
    if observation is not None and action.tool != observation.tool:
        raise UserError(
            f"assistant turn {number} is followed by results of {observation.tool} and does not end in a call "
            f"of it, but in {action.kind.value}"
        )
    if last and action.calls_tool:
        raise UserError(f"assistant turn {number} is the last and ends in a search that nothing answers")


def _reply(demonstration: Demonstration, number: int, sampled: Sequence[int], protocol: TurnProtocol) -> Encoded:
    """What the run said: the results, the notice that they were too long, or the request for the final answer."""
    if not isinstance(protocol, SearchProtocol):
        raise UserError(f"the assistant speaks {len(demonstration.texts)} times, and without tools it has one turn")
    observation = demonstration.observations[number]
    if observation is None:
        return protocol.ask_for_answer(demonstration.task, sampled)
    reply = protocol.reply(observation, demonstration.task, sampled)
    if demonstration.reply_tokens and demonstration.reply_tokens[number] != len(reply.token_ids):
        notice = protocol.overflow(observation.tool, sampled)
        if demonstration.reply_tokens[number] == len(notice.token_ids):
            return notice
    return reply


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
