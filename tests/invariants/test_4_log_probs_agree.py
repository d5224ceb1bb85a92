"""Log-probs of a padded, mixed batch == those of each sequence alone == those at which the tokens were sampled."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from servers import Trainers

from mmsearch_trl.rollout.limits import Limits


FAMILIES = [tiny.qwen25(), tiny.qwen3()]
LONG = Limits(max_turns=5, max_turn_tokens=5, max_response_tokens=600, image_search_limit=2, text_search_limit=4)
TOLERANCE = 1e-5


def _mixed(
    family: tiny.Family, out: Path, build: Any = tiny.trainer, **overrides: Any
) -> tuple[tiny.MMSearchGRPOTrainer, tiny.Batch]:
    """Eight rows with none to six images and more, some with text alone."""
    settings = {"per_device_train_batch_size": 8, "limits": LONG, "protocol": family.restless()} | overrides
    trainer = build(family, out, tiny.tasks(8, images=(0, 1, 4, 0, 6, 3)), **settings)
    return trainer, tiny.rollout_batch(trainer, list(trainer.train_dataset))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_a_padded_batch_scores_each_row_as_if_it_were_alone(
    family: tiny.Family, batch_size: int | None, tmp_path: Path
) -> None:
    trainer, batch = _mixed(family, tmp_path)
    counts = [len(trajectory.images) for trajectory in batch.trajectories]
    assert 0 in counts and max(counts) >= 6 and len(set(counts)) >= 4 and batch.output["num_images"] == counts
    assert len({len(trajectory.token_ids) for trajectory in batch.trajectories}) > 2
    values = tiny.padded_log_probs(trainer, batch.output, batch_size=batch_size)
    for trajectory, row in zip(batch.trajectories, values, strict=True):
        expected = tiny.alone(trainer.model, trainer.rollouter.protocol.chat, trajectory)
        scored = torch.tensor(trajectory.loss_mask, dtype=torch.bool)
        torch.testing.assert_close(row[: len(expected)][scored], expected[scored], atol=TOLERANCE, rtol=0)
        assert not row[: len(expected)][~scored].any() and not row[len(expected) :].any()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_tokens_are_trained_at_the_log_probs_at_which_they_were_sampled(
    family: tiny.Family, build: Trainers, tmp_path: Path
) -> None:
    trainer, batch = _mixed(family, tmp_path, build)
    _assert_sampled_as_trained(trainer, batch)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_also_at_another_temperature(family: tiny.Family, tmp_path: Path) -> None:
    trainer, batch = _mixed(family, tmp_path, temperature=0.7)
    _assert_sampled_as_trained(trainer, batch)


def _assert_sampled_as_trained(trainer: tiny.MMSearchGRPOTrainer, batch: tiny.Batch) -> None:
    values = tiny.padded_log_probs(trainer, batch.output)
    for trajectory, row in zip(batch.trajectories, values, strict=True):
        sampled = torch.tensor(trajectory.logprobs)
        torch.testing.assert_close(row[: len(sampled)], sampled, atol=TOLERANCE, rtol=0)
        alone = tiny.alone(trainer.model, trainer.rollouter.protocol.chat, trajectory, temperature=trainer.temperature)
        scored = torch.tensor(trajectory.loss_mask, dtype=torch.bool)
        torch.testing.assert_close(sampled[scored], alone[scored], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_wrong_m_rope_is_noticed(family: tiny.Family, tmp_path: Path) -> None:
    trainer, batch = _mixed(family, tmp_path)
    right = tiny.padded_log_probs(trainer, batch.output)
    rope = trainer.model.model.get_rope_index

    def linear(input_ids: torch.Tensor, *arguments: object, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
        positions, deltas = rope(input_ids, *arguments, **options)
        return torch.arange(positions.shape[-1]).expand_as(positions), deltas

    trainer.model.model.get_rope_index = linear
    wrong = tiny.padded_log_probs(trainer, batch.output)
    for trajectory, before, after in zip(batch.trajectories, right, wrong, strict=True):
        if any(image.num_tokens > 1 for image in trajectory.images):
            assert (before - after).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_an_image_in_the_wrong_place_is_noticed(family: tiny.Family, tmp_path: Path) -> None:
    trainer, batch = _mixed(family, tmp_path)
    right = tiny.padded_log_probs(trainer, batch.output)
    turned = dict(batch.output, pixel_values=batch.output["pixel_values"].flip(0))
    assert (right - tiny.padded_log_probs(trainer, turned)).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_trl_s_own_forward_gives_the_same_log_probs(family: tiny.Family, tmp_path: Path) -> None:
    trainer, batch = _mixed(family, tmp_path)
    ours = tiny.padded_log_probs(trainer, batch.output)
    output = batch.output
    with torch.no_grad():
        theirs, _, _ = super(tiny.MMSearchGRPOTrainer, trainer)._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
            torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
            output["completion_ids"].shape[1],
            pixel_values=output["pixel_values"],
            image_grid_thw=output["image_grid_thw"],
            num_images=output["num_images"],
            mm_token_type_ids=output["mm_token_type_ids"],
        )
    mask = (output["tool_mask"] * output["completion_mask"]).bool()
    torch.testing.assert_close(ours[mask], theirs[mask], atol=TOLERANCE, rtol=0)
