"""When the sampler's weights are not the trainer's any more."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mmsearch_trl.trainer.weight_version import WeightVersion


def trainer(*others: bool) -> Any:
    """A trainer whose other ranks say whether theirs changed."""

    def gather(flag: torch.Tensor) -> torch.Tensor:
        return torch.cat([flag, torch.tensor(others, dtype=torch.bool)])

    return SimpleNamespace(
        model=nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)),
        accelerator=SimpleNamespace(device=torch.device("cpu"), gather=gather),
        state=SimpleNamespace(global_step=0),
    )


def optimizer_step(trainer: Any) -> None:
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=0.1)
    trainer.model(torch.ones(1, 3)).sum().backward()
    optimizer.step()


def load(trainer: Any) -> None:
    trainer.model.load_state_dict({name: value + 1 for name, value in trainer.model.state_dict().items()})


def one_weight(trainer: Any) -> None:
    with torch.no_grad():
        trainer.model[1].bias.add_(1.0)


def sharded_step(trainer: Any) -> None:
    """Its writes do not show in the parameters that the trainer sees."""
    trainer.state.global_step += 1


def rollout(trainer: Any) -> None:
    with torch.no_grad():
        trainer.model(torch.ones(1, 3))


def accumulation(trainer: Any) -> None:
    trainer.model(torch.ones(1, 3)).sum().backward()


def test_what_was_never_sent_has_changed() -> None:
    watch = WeightVersion(trainer())
    assert watch.changed() and watch.changed() and watch.count == 0


@pytest.mark.parametrize("write", [optimizer_step, load, one_weight, sharded_step])
def test_a_write_shows_until_the_weights_are_sent(write: Callable[[Any], None]) -> None:
    given = trainer()
    watch = WeightVersion(given)
    for number in (1, 2):
        watch.sent()
        assert not watch.changed() and watch.count == 2 * number - 1
        write(given)
        assert watch.changed() and watch.changed()
        watch.sent()
        assert not watch.changed() and watch.count == 2 * number


@pytest.mark.parametrize("read", [rollout, accumulation])
def test_reading_the_weights_is_no_change(read: Callable[[Any], None]) -> None:
    given = trainer()
    watch = WeightVersion(given)
    watch.sent()
    read(given)
    assert not watch.changed()


@pytest.mark.parametrize("others", [(True, False), (False, True)])
def test_a_change_on_one_rank_is_every_ranks(others: tuple[bool, ...]) -> None:
    watch = WeightVersion(trainer(*others))
    watch.sent()
    assert watch.changed()


def test_nothing_changes_while_no_rank_writes() -> None:
    watch = WeightVersion(trainer(False, False))
    watch.sent()
    assert not watch.changed()


def test_another_reason_counts_as_a_change() -> None:
    watch = WeightVersion(trainer(False))
    watch.sent()
    assert watch.changed(also=True) and not watch.changed()
