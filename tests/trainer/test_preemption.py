"""SIGTERM while a run trains: it is saved at once, and the resumed run is the uninterrupted one, to the bit."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from trainer.test_resume import STEPS, traces, trainer, weights

from mmsearch_trl.core.errors import RunEnded
from mmsearch_trl.trainer.checkpoint_folder import newest_complete
from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer


pytestmark = pytest.mark.slow

OPTIONS: dict[str, Any] = {
    "steps_per_generation": 4,
    "gradient_accumulation_steps": 2,
    "save_strategy": "no",
    "eval_strategy": "steps",
    "eval_steps": 2,
}


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def before(count: int, method: Callable[..., Any], act: Callable[[], object]) -> Callable[..., Any]:
    """`method`, and `act` before its call of that number."""
    calls = 0

    def acting(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            act()
        return method(*arguments, **options)

    return acting


def while_turns_are_written(run: MMSearchGRPOTrainer, count: int, *, evaluating: bool) -> None:
    """In the rollout, or wait of an evaluation, of that number."""
    wait, seen = run.rollouter._wait_for, []

    def waiting(coroutine: Any) -> Any:
        if run._evaluating is evaluating:
            seen.append(coroutine)
            if len(seen) == count:
                threading.Timer(0.02, sigterm).start()
        return wait(coroutine)

    run.rollouter._wait_for = waiting  # pyright: ignore[reportAttributeAccessIssue]


def in_a_rollout(run: MMSearchGRPOTrainer) -> None:
    while_turns_are_written(run, 2, evaluating=False)


def in_an_evaluation(run: MMSearchGRPOTrainer) -> None:
    while_turns_are_written(run, 2, evaluating=True)


def between_micro_batches(run: MMSearchGRPOTrainer) -> None:
    """In the middle of the fourth step."""
    run._prepare_inputs = before(7, run._prepare_inputs, sigterm)  # pyright: ignore[reportAttributeAccessIssue]


def in_an_update(run: MMSearchGRPOTrainer) -> None:
    run._clip_grad_norm = before(3, run._clip_grad_norm, sigterm)  # pyright: ignore[reportAttributeAccessIssue]


def made(out: Path, seed: int = 0) -> MMSearchGRPOTrainer:
    return trainer(out, seed, eval_dataset={"few": tiny.dataset(tiny.tasks(3, images=(1,)))}, **OPTIONS)


def evaluations(run: MMSearchGRPOTrainer) -> list[Any]:
    logs = [log for log in run.state.log_history if "eval_few_accuracy" in log]
    return [[log[name] for name in ("step", "eval_few_reward", "eval_few_response_length")] for log in logs]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("whole")
    run = made(out)
    run.train()
    run.close()
    return weights(run), traces(out), evaluations(run)


@pytest.mark.parametrize("moment", [in_a_rollout, between_micro_batches, in_an_update, in_an_evaluation])
def test_a_run_that_is_told_to_end_is_saved_and_goes_on_as_if_it_was_not(
    moment: Callable[[MMSearchGRPOTrainer], None], whole: Any, tmp_path: Path
) -> None:
    first = made(tmp_path)
    moment(first)
    with first.preemption.on_sigterm(), pytest.raises(RunEnded):
        first.train()
    first.close()
    saved = newest_complete(tmp_path)
    assert saved is not None and 0 < first.state.global_step < STEPS
    resumed = made(tmp_path, seed=5)
    resumed.train(resume_from_checkpoint="auto")
    resumed.close()
    assert [name for name, value in weights(resumed).items() if not torch.equal(value, whole[0][name])] == []
    assert traces(tmp_path) == whole[1] and evaluations(resumed) == whole[2]


def test_before_the_first_step_there_is_nothing_to_save(tmp_path: Path) -> None:
    run = made(tmp_path)
    run._prepare_inputs = before(1, run._prepare_inputs, sigterm)  # pyright: ignore[reportAttributeAccessIssue]
    with run.preemption.on_sigterm(), pytest.raises(RunEnded):
        run.train()
    run.close()
    assert newest_complete(tmp_path) is None and not list(tmp_path.glob("checkpoint-*"))


def test_a_step_that_is_saved_is_not_saved_again(tmp_path: Path) -> None:
    run = trainer(tmp_path, **(OPTIONS | {"eval_strategy": "no", "save_strategy": "steps", "save_steps": 1}))
    between_micro_batches(run)
    saved: list[int] = []
    save = run._save_checkpoint
    run._save_checkpoint = lambda *arguments: (saved.append(run.state.global_step), save(*arguments))  # pyright: ignore
    with run.preemption.on_sigterm(), pytest.raises(RunEnded):
        run.train()
    run.close()
    assert saved == [1, 2, 3] and newest_complete(tmp_path) == tmp_path / "checkpoint-3"
