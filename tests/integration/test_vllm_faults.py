"""Training steps on real vLLM while turns fail, hang, and the server dies: the step ends, and nothing is lost or left.

What a server samples after its restart must still come from the trainer's weights.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny
from faults import Proxy
from servers import FLAGS, Servers, environment, in_forks

from mmsearch_trl.core.errors import EngineLost
from mmsearch_trl.core.trajectory import StopReason
from mmsearch_trl.rollout.background_loop import BackgroundLoop
from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer


pytestmark = pytest.mark.slow

FAMILY = tiny.qwen25()
STEPS = 3


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with environment():
        yield


@contextmanager
def training_on(url: str, out: Path, **options: Any) -> Iterator[MMSearchGRPOTrainer]:
    settings = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": url, "max_steps": STEPS}
    settings |= {"learning_rate": 1e-2, "per_device_train_batch_size": 8, "steps_per_generation": 1}
    trainer = tiny.trainer(FAMILY, out, tiny.tasks(8, images=(1, 0, 2)), **(settings | options))
    try:
        yield trainer
    finally:
        trainer.close()
        assert tasks_left(trainer.rollouter.loop) == []


def tasks_left(loop: BackgroundLoop) -> list[str]:
    """Tasks on a loop other than the one that looks."""

    async def look() -> list[str]:
        await asyncio.sleep(0.2)  # connections close
        return [repr(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    return loop.run(look())


@contextmanager
def spoiled(server: str, **shares: Any) -> Iterator[tuple[str, Proxy]]:
    """The address of a proxy, on a loop of its own, and the proxy."""
    loop, proxy = BackgroundLoop(), Proxy(server, **shares)
    serving = proxy.serve()
    url = loop.run(serving.__aenter__())
    try:
        yield url, proxy
    finally:
        loop.run(serving.__aexit__(None, None, None))


def trajectories_of(trainer: MMSearchGRPOTrainer) -> list[Any]:
    """Fills with the trajectories that are trained on from here on."""
    seen: list[Any] = []
    original = trainer._generate

    def spy(prompts: list[Any]) -> Any:
        assert trainer._batch is not None
        seen.extend(trainer._batch.trajectories)
        return original(prompts)

    trainer._generate = spy  # pyright: ignore[reportAttributeAccessIssue]
    return seen


def assert_accounted_for(trainer: MMSearchGRPOTrainer, trajectories: list[Any]) -> None:
    logs = [entry for entry in trainer.state.log_history if "rollout/failed" in entry]
    assert len(logs) == STEPS and len(trajectories) == 8 * STEPS
    failed = [trajectory.stop is StopReason.FAILED for trajectory in trajectories]
    assert all(trajectory.stop is not None for trajectory in trajectories)
    assert sum(entry["rollout/failed"] for entry in logs) * 8 == sum(failed)
    # Of what was not lost every turn came from the weights that were trained.
    assert all(entry["sampling/sampling_logp_difference/max"] < 1e-4 for entry in logs)


def test_a_tenth_of_turns_that_fail(servers: Servers, tmp_path: Path) -> None:
    with spoiled(servers.url(FAMILY), errors=0.1) as (url, proxy), training_on(url, tmp_path) as trainer:
        trajectories = trajectories_of(trainer)
        trainer.train()
    assert_accounted_for(trainer, trajectories)
    assert not any(trajectory.stop is StopReason.FAILED for trajectory in trajectories)
    retries = sum(entry.get("rollout/engine_retries", 0) for entry in trainer.state.log_history)
    assert proxy.errors == retries > 0


def test_turns_that_are_never_answered(servers: Servers, tmp_path: Path) -> None:
    with (
        spoiled(servers.url(FAMILY), hangs=0.1) as (url, proxy),
        training_on(url, tmp_path, vllm_request_timeout=3.0) as trainer,
    ):
        trajectories = trajectories_of(trainer)
        trainer.train()
    assert_accounted_for(trainer, trajectories)
    retries = sum(entry.get("rollout/engine_retries", 0) for entry in trainer.state.log_history)
    assert proxy.hangs == retries > 0


def test_turns_that_always_fail_end_the_run(servers: Servers, tmp_path: Path) -> None:
    message = "none of the last 8 rollouts worked; the first: gave up after 4 attempts"
    with (
        spoiled(servers.url(FAMILY), errors=1.0) as (url, proxy),
        training_on(url, tmp_path) as trainer,
        pytest.raises(EngineLost, match=message),
    ):
        trainer.train()
    assert proxy.errors == proxy.turns == 4 * 8, "it ends with the first batch"


def test_a_server_killed_and_restarted_within_a_rollout(tmp_path: Path) -> None:
    """It comes back with the weights of its start and is given the trained ones before it samples again."""
    home = tmp_path / "model"
    FAMILY.model().save_pretrained(home)
    FAMILY.processor.save_pretrained(home)
    children = set(psutil.Process().children(recursive=True))
    asked = 0
    with (
        in_forks(str(home), tmp_path / "server.log", FLAGS) as server,
        training_on(server.url, tmp_path / "run", vllm_server_timeout=400.0) as trainer,
    ):
        trajectories = trajectories_of(trainer)

        class Killer(tiny.WrappedEngine):
            async def generate(self, token_ids: Any, images: Any, sampling: Any) -> Any:
                nonlocal asked
                asked += 1
                if (
                    asked == 20
                ):  # in the second rollout; dead before this turn is asked for, whatever else is under way
                    await asyncio.to_thread(server.kill)
                    threading.Thread(target=server.start).start()
                return await super().generate(token_ids, images, sampling)

        tiny.wrap_engine(trainer, Killer)
        trainer.train()
    assert_accounted_for(trainer, trajectories)
    assert not any(trajectory.stop is StopReason.FAILED for trajectory in trajectories)
    logs = [entry for entry in trainer.state.log_history if "rollout/servers_restored" in entry]
    assert [entry["rollout/servers_restored"] for entry in logs] == [0, 1, 0]
    assert logs[1]["rollout/engine_retries"] > 0
    assert children_left(children) == []


def children_left(before: set[psutil.Process]) -> list[psutil.Process]:
    deadline = time.monotonic() + 10
    while (left := set(psutil.Process().children(recursive=True)) - before) and time.monotonic() < deadline:
        time.sleep(0.2)
    return sorted(left, key=lambda process: process.pid)
