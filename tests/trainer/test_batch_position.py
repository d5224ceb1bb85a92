"""Where training stands inside a generation batch comes back as it was saved, on the device of its process."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.trainer.batch_position import BatchLayout, BatchPosition
from mmsearch_trl.trainer.surplus import Groups


LAYOUT = BatchLayout(2, 2, 4, 1, 1, 2)
CPU = torch.device("cpu")


def inside() -> BatchPosition:
    batch = {"prompt_ids": torch.arange(6).reshape(2, 3), "pixel_values": torch.rand(4, 5), "num_images": [1, 0]}
    return BatchPosition.at(
        6, [batch, {**batch, "advantages": torch.tensor([0.5, -0.5], dtype=torch.bfloat16)}], LAYOUT
    )


@pytest.mark.parametrize("device", [CPU, torch.device("cpu:0")], ids=str)
def test_a_batch_comes_back_to_the_bit(device: torch.device, tmp_path: Path) -> None:
    saved = inside()
    saved.save(tmp_path, 1, LAYOUT)
    found = BatchPosition.load(tmp_path, 1, LAYOUT, 6, device)
    assert found.micro_step == 6 and found.micro_batches is not None and saved.micro_batches is not None
    for one, other in zip(found.micro_batches, saved.micro_batches, strict=True):
        assert one.keys() == other.keys() and one["num_images"] == other["num_images"]
        tensors = [name for name, value in other.items() if isinstance(value, torch.Tensor)]
        assert all(one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in tensors)


def test_between_two_batches_a_number_is_all_and_the_layout_may_change(tmp_path: Path) -> None:
    position = BatchPosition.at(8, inside().micro_batches, LAYOUT)
    assert position.micro_batches is None
    position.save(tmp_path, 0, LAYOUT)
    other = replace(LAYOUT, processes=4, steps_per_generation=2)
    assert BatchPosition.load(tmp_path, 0, other, 8, CPU) == BatchPosition(8, None)
    assert BatchPosition.load(tmp_path, 3, other, 8, CPU) == BatchPosition(8, None)  # a rank that was not there


def test_what_waits_for_the_next_batch_comes_back_where_the_layout_stays(tmp_path: Path) -> None:
    waiting = Groups([{"id": "a"}], [Trajectory(task=Task(id="a", question="?"), prompt=(), prompt_ids=(1,))])
    saved = BatchPosition.at(8, None, LAYOUT, (0.1, 0.2), waiting)
    saved.save(tmp_path, 0, LAYOUT)
    assert BatchPosition.load(tmp_path, 0, LAYOUT, 8, CPU) == saved
    other = BatchPosition.load(tmp_path, 0, replace(LAYOUT, num_generations=4), 8, CPU)
    assert (other.kl, len(other.surplus)) == ((0.1, 0.2), 0)


def test_what_was_seen_of_outages_comes_back_in_any_layout(tmp_path: Path) -> None:
    seen = {"rollouts": [2, (8, 2)], "searches": [0, (5, 1), (3, 0)], "first": ["out of memory", None]}
    replace(BatchPosition.at(8, None, LAYOUT), outage=seen).save(tmp_path, 0, LAYOUT)
    for layout in (LAYOUT, replace(LAYOUT, processes=4)):
        assert BatchPosition.load(tmp_path, 0, layout, 8, CPU).outage == seen


@pytest.mark.parametrize("change", [{"processes": 1}, {"num_iterations": 2}, {"per_device_train_batch_size": 4}])
def test_inside_a_batch_its_layout_must_stay(change: dict[str, int], tmp_path: Path) -> None:
    inside().save(tmp_path, 0, LAYOUT)
    [name] = change
    with pytest.raises(UserError, match=rf"lies inside a generation batch.*\({name} was {getattr(LAYOUT, name)}\)"):
        BatchPosition.load(tmp_path, 0, replace(LAYOUT, **change), 6, CPU)
