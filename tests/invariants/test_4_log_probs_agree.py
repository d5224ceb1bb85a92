"""Log-probs of a padded, mixed batch == those of each sequence alone == those at which the tokens were sampled."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import torch
from peft import LoraConfig
from servers import Servers, Trainers, environment
from transformers.models.qwen3_5 import modeling_qwen3_5

from mmsearch_trl.rollout.limits import Limits


LONG = Limits(max_turns=5, max_turn_tokens=5, max_response_tokens=600, image_search_limit=2, text_search_limit=4)
TOLERANCE = 1e-5


def _mixed(
    family: tiny.Family, out: Path, build: Any = tiny.trainer, **overrides: Any
) -> tuple[tiny.MMSearchGRPOTrainer, tiny.Batch]:
    """Eight rows with none to six images and more, some with text alone."""
    settings = {"per_device_train_batch_size": 8, "limits": LONG, "protocol": family.restless()} | overrides
    trainer = build(family, out, tiny.tasks(8, images=(0, 1, 4, 0, 6, 3)), **settings)
    return trainer, tiny.rollout_batch(trainer, list(trainer.train_dataset))


class Mixed(NamedTuple):
    """A trainer, and a batch that it rolled out."""

    trainer: tiny.MMSearchGRPOTrainer
    batch: tiny.Batch


@pytest.fixture(scope="module", params=tiny.FAMILIES | tiny.MIXTURES)
def mixed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    family = (tiny.FAMILIES | tiny.MIXTURES)[request.param]()
    return Mixed(*_mixed(family, tmp_path_factory.mktemp("mixed"), router_aux_loss_coef=0.0))


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_a_padded_batch_scores_each_row_as_if_it_were_alone(mixed: Mixed, batch_size: int | None) -> None:
    trainer, batch = mixed
    counts = [len(trajectory.images) for trajectory in batch.trajectories]
    assert 0 in counts and max(counts) >= 6 and len(set(counts)) >= 4 and batch.output["num_images"] == counts
    assert len({len(trajectory.token_ids) for trajectory in batch.trajectories}) > 2
    values = tiny.padded_log_probs(trainer, batch.output, batch_size=batch_size)
    for trajectory, row in zip(batch.trajectories, values, strict=True):
        expected = tiny.alone(trainer.model, trainer.rollouter.protocol.chat, trajectory)
        scored = torch.tensor(trajectory.loss_mask, dtype=torch.bool)
        torch.testing.assert_close(row[: len(expected)][scored], expected[scored], atol=TOLERANCE, rtol=0)
        assert not row[: len(expected)][~scored].any() and not row[len(expected) :].any()


def test_tokens_are_trained_at_the_log_probs_at_which_they_were_sampled(mixed: Mixed) -> None:
    _assert_sampled_as_trained(*mixed)


@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl"])
def test_also_on_every_engine(family: str, build: Trainers, tmp_path: Path) -> None:
    _assert_sampled_as_trained(*_mixed(tiny.FAMILIES[family](), tmp_path, build))


@pytest.mark.slow
@pytest.mark.xdist_group("servers")
@pytest.mark.parametrize("sync", ["merged", "adapter"])
def test_also_with_adapters_of_qwen2_vl_on_vllm(sync: str, tmp_path: Path) -> None:
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=r".*language_model.*_proj")
    options: dict[str, Any] = {"peft_config": lora, "vllm_lora_sync": sync}
    with environment():
        trainers = Trainers("colocate", Servers(tmp_path))
        trainer, batch = _mixed(tiny.qwen2(), tmp_path, trainers, **options)
        _assert_sampled_as_trained(trainer, batch)
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
        trainer.state.global_step += 1
        moved = tiny.rollout_batch(trainer, list(trainer.train_dataset))
        _assert_sampled_as_trained(trainer, moved)
        trainers.close()
    assert [t.token_ids for t in moved.trajectories] != [t.token_ids for t in batch.trajectories]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_also_at_another_temperature(family: str, tmp_path: Path) -> None:
    _assert_sampled_as_trained(*_mixed(tiny.FAMILIES[family](), tmp_path, temperature=0.7))


def _assert_sampled_as_trained(trainer: tiny.MMSearchGRPOTrainer, batch: tiny.Batch) -> None:
    values = tiny.padded_log_probs(trainer, batch.output)
    for trajectory, row in zip(batch.trajectories, values, strict=True):
        sampled = torch.tensor(trajectory.logprobs)
        torch.testing.assert_close(row[: len(sampled)], sampled, atol=TOLERANCE, rtol=0)
        alone = tiny.alone(trainer.model, trainer.rollouter.protocol.chat, trajectory, temperature=trainer.temperature)
        scored = torch.tensor(trajectory.loss_mask, dtype=torch.bool)
        torch.testing.assert_close(sampled[scored], alone[scored], atol=TOLERANCE, rtol=0)


def test_a_wrong_m_rope_is_noticed(mixed: Mixed, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, batch = mixed
    right = tiny.padded_log_probs(trainer, batch.output)
    rope = trainer.model.model.get_rope_index

    def linear(input_ids: torch.Tensor, *arguments: object, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
        positions, deltas = rope(input_ids, *arguments, **options)
        return torch.arange(positions.shape[-1]).expand_as(positions), deltas

    monkeypatch.setattr(trainer.model.model, "get_rope_index", linear)
    wrong = tiny.padded_log_probs(trainer, batch.output)
    for trajectory, before, after in zip(batch.trajectories, right, wrong, strict=True):
        if any(image.num_tokens > 1 for image in trajectory.images):
            assert (before - after).abs().max() > 100 * TOLERANCE


def test_an_image_in_the_wrong_place_is_noticed(mixed: Mixed) -> None:
    trainer, batch = mixed
    right = tiny.padded_log_probs(trainer, batch.output)
    turned = dict(batch.output, pixel_values=batch.output["pixel_values"].flip(0))
    assert (right - tiny.padded_log_probs(trainer, turned)).abs().max() > 100 * TOLERANCE


def test_the_state_that_padding_would_leave_behind_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where attention is linear, a token that is not masked stays in the state of all that follow it."""
    monkeypatch.setattr(modeling_qwen3_5, "apply_mask_to_padding_states", lambda states, mask: states)
    trainer, batch = _mixed(tiny.qwen35(), tmp_path)
    values, sampled = tiny.padded_log_probs(trainer, batch.output), [t.logprobs for t in batch.trajectories]
    rows = [(values[i, : len(given)] - torch.tensor(given)).abs().max() for i, given in enumerate(sampled)]
    assert max(rows) > 100 * TOLERANCE


def test_trl_s_own_forward_gives_the_same_log_probs(mixed: Mixed) -> None:
    trainer, batch = mixed
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
