"""Ids, loss mask and log-probs have one length; the mask is 1 exactly on sampled tokens, each turn's end included."""

from pathlib import Path

import tiny
from servers import Trainers


FAMILY = tiny.qwen25()
LOUDER = 5.0
"""The turn end's score times this: now far above the others', now far below. Some turns end themselves, others not."""


def test_lengths_agree_and_the_mask_marks_what_was_sampled(build: Trainers, tmp_path: Path) -> None:
    trainer = build(FAMILY, tmp_path, tiny.tasks(8, images=(0, 1, 3)), per_device_train_batch_size=8)
    batch = tiny.rollout_batch(trainer, list(trainer.train_dataset))
    masks = (batch.output["tool_mask"] * batch.output["completion_mask"]).tolist()
    for trajectory, mask in zip(batch.trajectories, masks, strict=True):
        expected = []
        for turn in trajectory.turns:
            assert len(turn.token_ids) == len(turn.logprobs)
            expected += [1] * len(turn.token_ids) + [0] * len(turn.reply_ids)
        assert len(trajectory.completion_ids) == len(trajectory.logprobs) == len(expected)
        assert trajectory.loss_mask == expected == mask[: len(expected)] and not any(mask[len(expected) :])
        assert trajectory.token_ids == [*trajectory.prompt_ids, *trajectory.completion_ids]
    assert int(batch.output["num_items_in_batch"]) == sum(map(sum, masks))


def test_a_sampled_turn_end_is_trained_and_one_that_was_added_is_not(build: Trainers, tmp_path: Path) -> None:
    model, end, ended, added = FAMILY.model(), FAMILY.protocol().chat.turn_end_id, 0, 0
    head = model.get_output_embeddings()
    assert head is not None
    head.weight.data[end] *= LOUDER
    trainer = build(FAMILY, tmp_path, tiny.tasks(8), model=model, per_device_train_batch_size=8)
    for trajectory in tiny.rollout_batch(trainer, list(trainer.train_dataset)).trajectories:
        for turn in trajectory.turns:
            ends = turn.token_ids[-1:] == (end,)
            assert end not in turn.token_ids[:-1]
            assert not turn.reply_ids or (turn.reply_ids[0] == end) != ends
            ended, added = ended + ends, added + (bool(turn.reply_ids) and not ends)
    assert ended and added
