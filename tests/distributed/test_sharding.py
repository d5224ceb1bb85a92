"""Sharded weights and rows without pictures: refused before ranks run different layers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from accelerate.utils import DistributedType
from datasets import Dataset

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import FinishReason
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.trajectory import StopReason, Trajectory, Turn
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.distributed.sharding import check_pictures_alike, shards_weights
from mmsearch_trl.trainer import grpo, sft
from mmsearch_trl.trainer.demonstrations import collate
from mmsearch_trl.trainer.sft import MMSearchSFTConfig, MMSearchSFTTrainer


FAMILY = tiny.qwen25()
MIXED = r"of \d+ rows hold a picture, and with sharded weights .* all must or none"


class Others(Ranks):
    """This rank, and others that say the same numbers every time."""

    def __init__(self, *others: list[float]) -> None:
        super().__init__()
        self.others = others

    def rows(self, numbers: Any) -> list[list[float]]:
        return [list(numbers), *self.others]


@pytest.mark.parametrize(
    ("mine", "others"), [((4, 4), [4, 4]), ((0, 4), [0, 4]), ((2, 2), [4, 4]), ((0, 0), [0, 0]), ((0, 0), [3, 3])]
)
def test_ranks_that_all_hold_pictures_or_none_go_on(mine: tuple[int, int], others: list[float]) -> None:
    check_pictures_alike(*mine, Others(others))


@pytest.mark.parametrize(("mine", "others"), [((4, 4), [3, 4]), ((4, 4), [0, 4]), ((0, 1), [1, 1]), ((1, 2), [0, 0])])
def test_ranks_that_differ_are_all_refused(mine: tuple[int, int], others: list[float]) -> None:
    with pytest.raises(UserError, match=MIXED):
        check_pictures_alike(*mine, Others(others))


@pytest.mark.slow
@pytest.mark.parametrize("images", [(1,), (0,), (2, 1)])
def test_data_of_one_kind_are_trained_with_sharded_weights(
    images: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpo, "shards_weights", lambda accelerator: True)
    trainer = tiny.trainer(FAMILY, tmp_path, tiny.tasks(4, images=images))
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.slow
def test_mixed_data_are_refused_before_the_first_rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.trainer(FAMILY, tmp_path, tiny.tasks(4, images=(1, 0)))
    monkeypatch.setattr(grpo, "shards_weights", lambda accelerator: True)
    with pytest.raises(UserError, match="^2 " + MIXED):
        tiny.trainer(FAMILY, tmp_path, tiny.tasks(4, images=(1, 0)))


@pytest.mark.slow
def test_a_rollout_that_never_began_is_refused_beside_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no prompt, and so no picture, though its row has one."""
    monkeypatch.setattr(grpo, "shards_weights", lambda accelerator: True)
    trainer = tiny.trainer(FAMILY, tmp_path)
    run = trainer.rollouter.run

    def unbegun(*arguments: Any, **options: Any) -> Any:
        report = run(*arguments, **options)
        first = report.trajectories[0]
        report.trajectories[0] = Trajectory(task=first.task, prompt=(), prompt_ids=(), stop=StopReason.FAILED)
        return report

    monkeypatch.setattr(trainer.rollouter, "run", unbegun)
    with pytest.raises(UserError, match="^3 " + MIXED):
        trainer.train()


@pytest.mark.slow
@pytest.mark.parametrize("there", [0, 1])
def test_supervised_batches_with_and_without_a_picture_do_not_meet(
    there: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sft, "shards_weights", lambda accelerator: True)
    monkeypatch.setattr(sft, "Ranks", lambda: Others([there, 1]))
    protocol, [task] = FAMILY.protocol(), tiny.tasks(1)
    prompt = protocol.prompt(task)
    ids = (*protocol.chat.tokenizer("it is new")["input_ids"], protocol.chat.turn_end_id)
    trajectory = Trajectory(task=task, prompt=prompt.parts, prompt_ids=prompt.token_ids)
    turn: dict[str, Any] = {"logprobs": (0.0,) * len(ids), "finish_reason": FinishReason.STOP, "text": "it is new"}
    trajectory.turns = [Turn(token_ids=ids, action=Action(ActionKind.ANSWER), **turn)]
    settings: dict[str, Any] = {"use_cpu": True, "bf16": False, "max_steps": 1, "report_to": "none"}
    settings |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False, "max_length": None}
    trainer = MMSearchSFTTrainer(
        FAMILY.model(),
        MMSearchSFTConfig(str(tmp_path), save_strategy="no", gradient_checkpointing=False, **settings),
        train_dataset=Dataset.from_list([{"row": 0}]),
        data_collator=lambda rows: collate([trajectory] * len(rows), protocol.chat, 0),
        processing_class=FAMILY.processor,
    )
    if there:
        trainer.train()
        return
    with pytest.raises(UserError, match="^1 " + MIXED):
        trainer.train()


@pytest.mark.parametrize(
    ("kind", "stage", "expected"),
    [
        ("NO", None, False),
        ("MULTI_GPU", None, False),
        ("FSDP", None, True),
        ("DEEPSPEED", 3, True),
        ("DEEPSPEED", 2, False),
    ],
)
def test_what_gathers_weights_in_a_forward_pass(kind: str, stage: int | None, expected: int) -> None:
    plugin = SimpleNamespace(zero_stage=stage) if stage is not None else None
    accelerator: Any = SimpleNamespace(
        state=SimpleNamespace(deepspeed_plugin=plugin), distributed_type=DistributedType(kind)
    )
    assert shards_weights(accelerator) is bool(expected)
