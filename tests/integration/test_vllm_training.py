"""Training with rollouts on real vLLM: what the sampler samples from is what the trainer trains.

After each optimizer step the log-probs that vLLM reported must be the trainer's own on the same tokens, images among
them that it had seen before the step; and that check must fail when the weights are not sent or the caches not reset.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import torch
from peft import LoraConfig
from servers import Servers, Trainers, environment

from mmsearch_trl.core.errors import EngineLost
from mmsearch_trl.core.trajectory import StopReason
from mmsearch_trl.engine.vllm_client import VLLMClient
from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer
from mmsearch_trl.trainer.sampler.weight_version import WeightVersion


pytestmark = pytest.mark.slow

FAMILY = tiny.qwen25()
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapter() -> LoraConfig:
    """In the language model alone; with B drawn at random, so that the adapter does something from the start."""
    targets = r".*language_model.*\.(" + "|".join(PROJECTIONS) + ")"
    return LoraConfig(r=4, lora_alpha=16, target_modules=targets, init_lora_weights=False)


@pytest.fixture(params=["server", "colocate"])
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(servers: Servers, mode: str, tmp_path: Path) -> Iterator[Any]:
    """Builds trainers on vLLM; their engines are closed at the end."""
    with environment():
        trainers = Trainers(mode, servers)
        settings = {"max_steps": 2, "learning_rate": 1e-2, "temperature": 1.0}
        yield lambda **options: trainers(FAMILY, tmp_path / "run", tiny.tasks(2), **(settings | options))
        trainers.close()


class Comparison(NamedTuple):
    """vLLM's log-probs against a plain forward pass of the trainer's weights, and images in replies among them."""

    worst: float
    pictures: int


def compare(trainer: MMSearchGRPOTrainer, seed: str) -> Comparison:
    # Questions of more than a block of the prefix cache: what is kept of them must show.
    tasks = [replace(task, question=f"{task.question} " * 20) for task in tiny.tasks(6)]
    trajectories = tiny.roll_out(trainer, tasks, [f"{seed}/{task.id}" for task in tasks])
    assert all(t.stop is not StopReason.FAILED for t in trajectories), [t.failure for t in trajectories]
    model, worst = trainer.accelerator.unwrap_model(trainer.model).eval(), 0.0
    for trajectory in trajectories:
        expected = tiny.alone(model, trainer.rollouter.protocol.chat, trajectory)
        sampled = torch.tensor(trajectory.loss_mask).bool()
        difference = expected - torch.tensor(trajectory.logprobs)
        worst = max(worst, float(difference[sampled].abs().max()))
    return Comparison(worst, sum(len(t.images) for t in trajectories) - sum(len(task.images) for task in tasks))


@pytest.mark.parametrize("kind", ["full", "adapter", "merged"])
def test_the_sampler_has_the_trainer_s_weights_after_every_step(make: Any, kind: str) -> None:
    options = {} if kind == "full" else {"peft_config": adapter(), "vllm_lora_sync": kind}
    trainer = make(**options)
    assert compare(trainer, "before").worst < 1e-4
    before = [parameter.detach().clone() for parameter in trainer.model.parameters() if parameter.requires_grad]
    trainer.train()
    after = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    after_training = compare(trainer, "after")
    assert after_training.worst < 1e-4 and after_training.pictures > 0  # pictures of replies as well
    logged = [entry for entry in trainer.state.log_history if "sampling/sampling_logp_difference/max" in entry]
    assert len(logged) == 2
    assert all(entry["sampling/sampling_logp_difference/max"] < 1e-4 for entry in logged)
    assert all(entry["sync/seconds"] > 0 for entry in logged[1:])


def test_the_check_fails_when_weights_are_not_sent(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(peft_config=adapter())
    assert compare(trainer, "before").worst < 1e-4
    monkeypatch.setattr(WeightVersion, "changed", lambda self, policy, also=False: False)
    with pytest.raises(EngineLost, match="it does not sample from the weights that are trained"):
        trainer.train()
    assert compare(trainer, "after").worst > 1e-2


@pytest.mark.parametrize("mode", ["server"], indirect=True)
def test_an_adapter_on_a_server_of_another_base_ends_the_run_before_an_update(make: Any) -> None:
    trainer = make(model=FAMILY.model(seed=1), peft_config=adapter())  # the server's has another seed, and its shape
    before = {name: weights.clone() for name, weights in trainer.model.state_dict().items()}
    with pytest.raises(EngineLost, match="It may serve another model of this shape"):
        trainer.train()
    assert all(torch.equal(weights, before[name]) for name, weights in trainer.model.state_dict().items())


def test_weights_that_did_not_change_are_not_sent_again(make: Any) -> None:
    trainer = make()
    watch = trainer.sampler._version
    for seed in ("a", "b"):
        compare(trainer, seed)
    assert watch.count == 1
    with torch.no_grad():
        next(trainer.model.parameters()).mul_(1.5)  # not by a step
    assert compare(trainer, "c").worst < 1e-4 and watch.count == 2


def test_the_check_fails_when_prefixes_are_kept(make: Any, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make()
    assert compare(trainer, "before").worst < 1e-4
    if mode == "server":
        monkeypatch.setattr(VLLMClient, "reset_caches", reset_all_but_prefixes)
    else:
        monkeypatch.setattr(trainer.sampler._engine._llm, "reset_prefix_cache", lambda: True)
    trainer.train()
    assert compare(trainer, "after").worst > 1e-2


async def reset_all_but_prefixes(client: VLLMClient) -> None:
    for cache in ("mm", "encoder"):
        await client._call("POST", f"/reset_{cache}_cache")


@pytest.mark.parametrize("mode", ["colocate"], indirect=True)
def test_encoded_pictures_that_are_kept_break_a_rollout(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM drops what its workers encoded with the weights, and goes on counting on it."""
    trainer = make()
    assert compare(trainer, "before").worst < 1e-4
    monkeypatch.setattr(trainer.sampler._engine._llm, "reset_encoder_cache", lambda: None)
    with torch.no_grad():
        next(trainer.model.parameters()).mul_(1.5)
    with pytest.raises(AssertionError, match="Encoder cache miss"):
        compare(trainer, "after")
