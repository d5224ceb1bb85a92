"""Dealing rows to micro-batches by length: the same step, with less padding."""

from collections.abc import Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl.trainer.utils import (
    shuffle_sequence_dict,
    split_pixel_values_by_grid,
    split_tensor_dict,
    unsplit_pixel_values_by_grid,
)

from mmsearch_trl.trainer import micro_batches
from mmsearch_trl.trainer.micro_batches import (
    deal_by_length,
    forwarded_per_token,
    micro_batches_per_step,
    rows_may_move,
)


pytestmark = pytest.mark.slow

FAMILY = tiny.qwen25()
MIXED = (0, 3, 1, 2)
FREE = [{"loss_type": name} for name in ("grpo", "sapo", "luspo", "dr_grpo", "dapo", "cispo", "vespo")]
FREE += [{"trajectory_level_loss": True}, {"beta": 0.04}, {"importance_sampling_level": "sequence"}]
BOUND: list[dict[str, Any]] = [
    {"loss_type": "bnpo"},
    {"entropy_coef": 0.5},
    {"top_entropy_quantile": 0.3},
    {"trajectory_level_loss": True, "beta": 0.5},
]


def _cut(trainer: tiny.MMSearchGRPOTrainer, rows: list[Any]) -> list[dict[str, Any]]:
    """A generation batch as TRL buffers it, by a policy that has moved away from the one that sampled."""
    output = tiny.rollout_batch(trainer, rows).output
    count = int(trainer.args.steps_per_generation or 1)
    generator = torch.Generator().manual_seed(3)
    now = tiny.padded_log_probs(trainer, output)
    output["old_per_token_logps"] = now + 0.3 * torch.randn(now.shape, generator=generator)
    if trainer.beta:
        output["ref_per_token_logps"] = now + 0.3 * torch.randn(now.shape, generator=generator)
    torch.manual_seed(3)
    rows_apart: Any = split_pixel_values_by_grid(output)  # TRL's types do not hold each other's results
    shuffled: Any = shuffle_sequence_dict(rows_apart)
    batches: Any = split_tensor_dict(shuffled, count)
    return [unsplit_pixel_values_by_grid(batch) for batch in batches]


def _gradients(trainer: tiny.MMSearchGRPOTrainer, batches: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The loss and the gradients of one optimizer step over the micro-batches."""
    trainer.current_gradient_accumulation_steps = len(batches)
    trainer.model.zero_grad()
    total = torch.zeros(())
    for batch in batches:
        loss = trainer._compute_loss(trainer.model, batch)
        loss.backward()
        total += loss.detach()
    gradients = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    return {"loss": total} | gradients


def _trainer(out: Path, **options: Any) -> tiny.MMSearchGRPOTrainer:
    settings: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4} | options
    return tiny.trainer(FAMILY, out, tiny.tasks(8, images=MIXED), **settings)


@pytest.mark.parametrize("options", FREE, ids=str)
def test_a_step_has_the_same_gradient_however_its_rows_are_dealt(options: dict[str, Any], tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, **options)
    cut = _cut(trainer, list(trainer.train_dataset))
    dealt = deal_by_length(cut, trainer.args)
    assert [batch["num_images"] for batch in dealt] != [batch["num_images"] for batch in cut]
    assert forwarded_per_token(dealt) < forwarded_per_token(cut)
    before, after = _gradients(trainer, cut), _gradients(trainer, dealt)
    assert before.keys() == after.keys() and any(value.abs().max() > 1e-3 for value in before.values())
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=2e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("options", BOUND, ids=str)
def test_rows_stay_where_the_loss_is_normalised_by_micro_batch(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _trainer(tmp_path, **options)
    cut = _cut(trainer, list(trainer.train_dataset))
    kept = deal_by_length(cut, trainer.args)
    assert all(one is other for one, other in zip(kept, cut, strict=True))
    monkeypatch.setattr(micro_batches, "rows_may_move", lambda args: True)
    before, after = _gradients(trainer, cut), _gradients(trainer, deal_by_length(cut, trainer.args))
    assert any((after[name] - before[name]).abs().max() > 1e-5 for name in before), "dealing would have been harmless"


def test_a_loss_with_a_mean_over_the_tokens_of_a_micro_batch_keeps_the_cut(tmp_path: Path) -> None:
    assert rows_may_move(tiny.config(tmp_path))
    assert not rows_may_move(tiny.config(tmp_path, loss_type="bnpo"))
    trajectories = {"trajectory_level_loss": True}
    assert rows_may_move(tiny.config(tmp_path, **trajectories))
    assert not rows_may_move(tiny.config(tmp_path, **trajectories, beta=0.1))
    assert not rows_may_move(tiny.config(tmp_path, **trajectories, entropy_coef=0.1))


@pytest.mark.parametrize(
    ("accumulated", "generated", "expected"), [(4, 4, 4), (8, 4, 4), (2, 4, 2), (1, 4, 1), (2, 3, 1), (3, 2, 1)]
)
def test_rows_move_within_an_optimizer_step_only(
    accumulated: int, generated: int, expected: int, tmp_path: Path
) -> None:
    args = tiny.config(tmp_path, gradient_accumulation_steps=accumulated, steps_per_generation=generated)
    assert micro_batches_per_step(args) == expected


def _numbered(rows: list[tuple[int, int]], count: int) -> list[dict[str, Any]]:
    """Micro-batches in which everything of row i holds i; rows are (length, images)."""
    size, width = len(rows) // count, max(length for length, _ in rows)
    ids = torch.arange(len(rows))
    whole: Any = {
        "prompt_ids": ids[:, None].expand(-1, 2),
        "prompt_mask": torch.ones(len(rows), 2, dtype=torch.long),
        "completion_mask": (torch.arange(width) < torch.tensor([length for length, _ in rows])[:, None]).long(),
        "advantages": ids.float(),
        "num_items_in_batch": torch.tensor(5.0),
        "num_images": [images for _, images in rows],
        "pixel_values": [torch.full((3 * images, 2), float(i)) for i, (_, images) in enumerate(rows)],
        "image_grid_thw": [torch.tensor([1, 1, 3]).repeat(images, 1) for _, images in rows],
    }
    assert size * count == len(rows)
    batches: Any = split_tensor_dict(whole, count)
    return [unsplit_pixel_values_by_grid(batch) for batch in batches]


@given(
    rows=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 3)), min_size=8, max_size=8),
    steps=st.sampled_from([1, 2]),
)
def test_everything_of_a_row_goes_with_it(
    rows: list[tuple[int, int]], steps: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    args = tiny.config(tmp_path_factory.getbasetemp(), gradient_accumulation_steps=4 // steps, steps_per_generation=4)
    dealt = deal_by_length(_numbered(rows, 4), args)
    places = [batch["advantages"].int().tolist() for batch in dealt]
    for step in range(steps):
        own = slice(step * 4 // steps, (step + 1) * 4 // steps)
        numbers = [i for batch in places[own] for i in batch]
        assert sorted(numbers) == list(range(step * 8 // steps, (step + 1) * 8 // steps))
        lengths = [rows[i][0] for i in numbers]
        assert lengths == sorted(lengths, reverse=True)
    for numbers, batch in zip(places, dealt, strict=True):
        assert batch["prompt_ids"][:, 0].tolist() == numbers and batch["num_items_in_batch"] == 5.0
        assert batch["completion_mask"].sum(dim=1).tolist() == [rows[i][0] for i in numbers]
        assert batch["num_images"] == [rows[i][1] for i in numbers]
        assert batch["pixel_values"][:, 0].tolist() == [i for i in numbers for _ in range(3 * rows[i][1])]
        assert len(batch["image_grid_thw"]) == sum(batch["num_images"])


class _Forwards:
    """Counts what the trained model is given while gradients are on."""

    def __init__(self, trainer: tiny.MMSearchGRPOTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[int, int, list[int]]] = []
        forward = trainer.model.forward

        @wraps(forward)  # `generate` reads which inputs it takes off its signature
        def spy(*arguments: Any, **inputs: Any) -> Any:
            if inputs.get("fused_lm_head") and torch.is_grad_enabled():
                mask = inputs["attention_mask"]
                self.seen.append((mask.numel(), int(mask.sum()), sorted(mask.sum(dim=1).tolist())))
            return forward(*arguments, **inputs)

        monkeypatch.setattr(trainer.model, "forward", spy)


def _ratio(seen: list[tuple[int, int, list[int]]]) -> float:
    return sum(forwarded for forwarded, _, _ in seen) / sum(real for _, real, _ in seen)


def test_the_log_says_what_was_forwarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _trainer(tmp_path, max_steps=2)
    forwards = _Forwards(trainer, monkeypatch)
    trainer.train()
    logs = [log["train/forwarded_per_token"] for log in trainer.state.log_history if "loss" in log]
    assert len(forwards.seen) == 8
    assert logs == pytest.approx([_ratio(forwards.seen[:4]), _ratio(forwards.seen[4:])])
    assert all(1 <= ratio < 1.5 for ratio in logs)


def _halves(seen: list[Any]) -> Iterator[Mapping[int, Any]]:
    for start in range(0, len(seen), 2):
        yield dict(enumerate(seen[start : start + 2]))


def test_steps_of_one_generation_batch_and_iterations_over_it_keep_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _trainer(tmp_path, gradient_accumulation_steps=2, steps_per_generation=4, num_iterations=2, max_steps=4)
    forwards = _Forwards(trainer, monkeypatch)
    trainer.train()
    first, second, again, and_again = _halves(forwards.seen)
    assert (first, second) == (again, and_again)
    for step in (first, second):
        assert step[0][2][0] >= step[1][2][-1], "the longer rows come first within a step"
