"""GRPO without tools, on conversations with and without pictures in one batch, by any reward function."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from mmsearch_trl.core.message import Message
from mmsearch_trl.core.task import Task
from mmsearch_trl.data.dataset import row_to_task
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.protocol.direct import DirectProtocol


FAMILIES = {"qwen2.5-vl": tiny.qwen25, "qwen3-vl": tiny.qwen3}
SYSTEM = Message("system", ("think in <think></think>",))


def conversations() -> list[Task]:
    """No picture, one behind a text, two of which one is of an earlier turn, and a bare question."""
    plain, one, two, bare = tiny.tasks(4, images=(0, 1, 2, 0))
    earlier = (Message("user", ("this", None)), Message("assistant", ("it is new",)))
    return [
        replace(plain, messages=(SYSTEM, Message("user", ("who",)))),
        replace(one, messages=(Message("user", ("here:", None, "who")),)),
        replace(two, messages=(SYSTEM, *earlier, Message("user", (None, "and this?")))),
        bare,
    ]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tiny.Family:
    return FAMILIES[request.param]()


@pytest.mark.slow
def test_a_batch_of_mixed_conversations_is_trained_as_each_alone(family: tiny.Family, tmp_path: Path) -> None:
    given, protocol = conversations(), DirectProtocol(ChatEncoder(family.processor))
    trainer = tiny.trainer(family, tmp_path, given, protocol=protocol, per_device_train_batch_size=8, max_steps=2)
    rows: Any = trainer.train_dataset
    assert [row_to_task(row).messages for row in rows] == [task.messages for task in given]
    trajectories, output = tiny.rollout_batch(trainer, [row for row in rows for _ in range(2)])
    assert [len(trajectory.images) for trajectory in trajectories] == [0, 0, 1, 1, 2, 2, 0, 0]
    assert all(len(trajectory.turns) == 1 and trajectory.searched is None for trajectory in trajectories)
    padded = tiny.padded_log_probs(trainer, output)
    for row, trajectory in enumerate(trajectories):
        expected = protocol.prompt(trajectory.task).token_ids
        assert trajectory.prompt_ids == expected and all(trajectory.loss_mask)
        oracle = tiny.alone(trainer.model, protocol.chat, trajectory)
        torch.testing.assert_close(padded[row, : len(oracle)], oracle, atol=1e-5, rtol=0.0)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    changed = [not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True)]
    assert sum(changed) > len(changed) / 2
    logged = {name for log in trainer.state.log_history for name in log}
    assert "reward" in logged and not {name for name in logged if "search" in name or "tool" in name}
    trainer.close()
