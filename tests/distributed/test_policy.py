"""What those who sample from a policy see of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from mmsearch_trl.distributed.policy import Policy


def policy(model: nn.Module, step: int = 0) -> Policy:
    return Policy(Accelerator(cpu=True), model, step)


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))


def optimizer_step(model: nn.Module) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()


def load(model: nn.Module) -> None:
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})


def one_weight(model: nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters()).add_(1.0)


def rollout(model: nn.Module) -> None:
    with torch.no_grad():
        model(torch.ones(1, 3))


def accumulation(model: nn.Module) -> None:
    model(torch.ones(1, 3)).sum().backward()


@pytest.mark.parametrize("write", [optimizer_step, load, one_weight])
def test_every_write_to_a_weight_is_another_version(write: Callable[[nn.Module], None]) -> None:
    model = small()
    before = policy(model).version
    write(model)
    assert policy(model).version != before


def test_a_step_on_sharded_weights_is_another_version() -> None:
    """Its writes do not show in the parameters that the process sees."""
    model = small()
    assert policy(model, step=1).version != policy(model).version


@pytest.mark.parametrize("read", [rollout, accumulation])
def test_reading_weights_is_the_same_version(read: Callable[[nn.Module], None]) -> None:
    model = small()
    before = policy(model).version
    read(model)
    assert policy(model).version == before


def test_bytes_are_those_of_the_weights_that_are_sent() -> None:
    model = nn.ModuleList([nn.Linear(4, 3), nn.Linear(3, 5, bias=False, dtype=torch.bfloat16)])
    assert policy(model).num_bytes(trainable_only=False) == 4 * (4 * 3 + 3) + 2 * 15
    model[0].requires_grad_(False)
    assert policy(model).num_bytes(trainable_only=True) == 2 * 15
    assert policy(model).num_bytes(trainable_only=False) == 4 * (4 * 3 + 3) + 2 * 15


def test_a_tied_weight_counts_once() -> None:
    model = nn.ModuleList([nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)])
    model[1].weight = model[0].weight
    assert policy(model).num_bytes(trainable_only=False) == 4 * 24


def test_a_partitioned_weight_counts_whole() -> None:
    """ZeRO-3 leaves an empty tensor in its place, which knows its whole size."""
    model = nn.Linear(1, 1, bias=False)
    weight: Any = nn.Parameter(torch.empty(0))
    weight.ds_numel = 24
    model.weight = weight
    assert policy(model).num_bytes(trainable_only=False) == 4 * 24
