"""Every estimator against a reference in plain numpy, token by token; TRL's GRPO where the two are defined alike."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from mmsearch_trl.trainer.estimator_config import EstimatorConfig, KLConfig
from mmsearch_trl.trainer.estimators import Estimate, Estimator


GROUP, EPS, NAN = 4, 1e-4, float("nan")
NAMES = ("group_norm", "rloo", "reinforce", "reinforce_baseline", "dr_grpo", "gae")


def reference(
    config: EstimatorConfig,
    rewards: np.ndarray,
    mask: np.ndarray,
    old: np.ndarray,
    ref: np.ndarray,
    values: np.ndarray,
    eps: float = EPS,
) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and returns, `(n, t)`, with loops alone."""
    kept = rewards.copy()
    for start in range(0, len(rewards), GROUP):
        group = [i for i in range(start, start + GROUP) if not np.isnan(rewards[i])]
        for i in group:
            others = [rewards[j] for j in group if j != i]
            if config.name == "rloo":
                kept[i] = rewards[i] - np.mean(others) if others else 0.0
            elif config.name not in ("reinforce", "gae"):
                kept[i] = rewards[i] - np.mean(rewards[group])
            if config.name == "group_norm":
                kept[i] /= (np.std(rewards[group], ddof=1) if others else 0.0) + eps
    if config.clip is not None:
        kept = np.clip(kept, *config.clip)
    returns, advantages = np.zeros(mask.shape), np.zeros(mask.shape)
    tokens = [[t for t in range(mask.shape[1]) if mask[i, t]] for i in range(len(rewards))]
    tokens = [[] if np.isnan(rewards[i]) else row for i, row in enumerate(tokens)]
    for i, row in enumerate(tokens):
        after, next_value, surprises = kept[i], 0.0, 0.0
        for place, t in enumerate(reversed(row)):
            d = old[i, t] - ref[i, t]
            kl = {"k1": d, "k2": d * d / 2, "k3": np.exp(-d) + d - 1}[config.kl.form]
            paid = -config.kl.coef * kl if config.kl.place == "reward" else 0.0
            if config.name == "gae":
                paid += kept[i] if place == 0 else 0.0
                surprises = paid + config.gamma * (next_value + config.lam * surprises) - values[i, t]
                next_value, advantages[i, t], returns[i, t] = values[i, t], surprises, surprises + values[i, t]
                continue
            after = paid + (after if place == 0 else config.gamma * after)
            returns[i, t] = advantages[i, t] = after
    every = [advantages[i, t] for i, row in enumerate(tokens) for t in row]
    if config.normalization != "none" and every:
        deviation = np.sqrt(max(np.var(every), 1e-8)) if config.normalization == "mean_std" else 1.0
        for i, row in enumerate(tokens):
            for t in row:
                advantages[i, t] = (advantages[i, t] - np.mean(every)) / deviation
    return advantages, returns


def drawn(turns: int, seed: int = 0, n: int = 12) -> dict[str, torch.Tensor]:
    """Rewards with gaps, `turns` turns of random lengths with replies between, and log-probs; one row holds no token,
    one prompt has a single rollout with a reward, one has none, and in one all rewards are equal."""
    rng = np.random.default_rng(seed)
    rewards = rng.uniform(-12, 12, n)
    rewards[[2, 4, 5, 6]] = NAN
    rewards[8:12] = 0.91
    mask = np.zeros((n, 24))
    for row in range(1, n):
        at = 0
        for _ in range(turns):
            sampled = rng.integers(1, 24 // turns - 2)
            mask[row, at : at + sampled] = 1
            at += sampled + rng.integers(1, 3)
    old, ref, values = (rng.normal(-2, 1, mask.shape) for _ in range(3))
    columns = {"rewards": rewards, "mask": mask, "old": old, "ref": ref, "values": values}
    return {name: torch.from_numpy(values) for name, values in columns.items()}


class Alone:
    """One rank."""

    index = 0

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def sum(self, numbers: list[float]) -> list[float]:
        return numbers


class Rank:
    """One of two ranks, which are threads."""

    barrier = threading.Barrier(2)

    def __init__(self, index: int, board: dict[int, Any]) -> None:
        self.index = index
        self._board = board

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        self._board[self.index] = tensor
        self.barrier.wait()
        both = torch.cat([self._board[0], self._board[1]])
        self.barrier.wait()
        return both

    def sum(self, numbers: list[float]) -> list[float]:
        return self.gather(torch.tensor([numbers], dtype=torch.float64)).sum(dim=0).tolist()


def estimate(config: EstimatorConfig, given: dict[str, torch.Tensor], ranks: Any, **options: Any) -> Estimate:
    estimator = Estimator(config, ranks, **({"group_size": GROUP, "eps": EPS, "kl_clamp": False} | options))
    batch = {
        "completion_mask": torch.ones_like(given["mask"]),
        "tool_mask": given["mask"],
        "old_per_token_logps": given["old"],
        "ref_per_token_logps": given["ref"],
    }
    values_of = (lambda _: given["values"]) if config.name == "gae" else _none_needed
    return estimator(given["rewards"], batch, _none_needed, values_of)


def _none_needed(batch: Any) -> torch.Tensor:
    raise AssertionError("the batch holds log-probs, and there is no critic")


def on_two_ranks(config: EstimatorConfig, given: dict[str, torch.Tensor]) -> Estimate:
    found: dict[int, Estimate] = {}
    board: dict[int, Any] = {}
    half = len(given["rewards"]) // 2

    def work(index: int) -> None:
        part = {name: values[index * half : (index + 1) * half] for name, values in given.items()}
        found[index] = estimate(config, part, Rank(index, board))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one, two = found[0], found[1]
    assert one.metrics == two.metrics
    return Estimate(
        torch.cat([one.advantages, two.advantages]),
        torch.cat([one.returns, two.returns]),
        torch.cat([one.of_trajectories, two.of_trajectories]),
        one.metrics,
        None,
        torch.cat([one.mask, two.mask]),
    )


CONFIGS = [
    *({"name": name} for name in NAMES),
    *({"name": name, "kl": KLConfig(coef=0.1, form=form)} for name in NAMES for form in ("k1", "k2", "k3")),
    *({"name": name, "reward_clip": (-2.0, 3.0), "kl": KLConfig(coef=0.1)} for name in NAMES),
    *({"name": "reinforce", "gamma": 0.9, "normalize": normalize} for normalize in ("mean_std", "mean", "none")),
    {"name": "reinforce", "gamma": 0.9, "kl": KLConfig(coef=0.3, form="k2")},
    *({"name": "gae", "gamma": gamma, "lam": lam} for gamma, lam in ((1.0, 0.95), (0.9, 1.0), (0.99, 0.0))),
    {"name": "gae", "gamma": 0.9, "lam": 0.9, "normalize": "mean", "kl": KLConfig(coef=0.3, form="k3")},
    {"name": "gae", "normalize": "none", "reward_clip": (-1.0, 1.0)},
    *(
        {"name": name, "normalize": normalize}
        for name in ("rloo", "reinforce_baseline")
        for normalize in ("mean", "none")
    ),
    *({"name": name, "compat": "lmm_r1"} for name in NAMES),
    {"name": "rloo", "kl": KLConfig(coef=0.1, form="k3", place="loss")},
]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("keys", CONFIGS, ids=str)
def test_an_estimator_is_the_reference(keys: dict[str, Any], turns: int, ranks: int) -> None:
    config, given = EstimatorConfig(**keys), drawn(turns)
    found = estimate(config, given, Alone()) if ranks == 1 else on_two_ranks(config, given)
    eps = 1e-9 if config.compat else EPS
    columns = (given[name].numpy() for name in ("rewards", "mask", "old", "ref", "values"))
    advantages, returns = reference(config, *columns, eps=eps)
    np.testing.assert_allclose(found.advantages, advantages, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.returns, returns, rtol=1e-5, atol=1e-5)
    counts = given["mask"].sum(dim=1).clamp(min=1).numpy()
    np.testing.assert_allclose(found.of_trajectories, advantages.sum(axis=1) / counts, rtol=1e-4, atol=1e-5)


def test_a_rollout_without_a_reward_moves_nothing_of_the_others() -> None:
    given = drawn(3)
    given["rewards"][4:8] = torch.tensor([1.0, NAN, 0.0, 0.5])
    config = EstimatorConfig(name="reinforce_baseline", kl=KLConfig(coef=0.1))
    before = estimate(config, given, Alone())
    given["old"][5], given["mask"][5] = 7.0, 1.0
    after = estimate(config, given, Alone())
    assert torch.equal(before.advantages, after.advantages) and before.metrics == after.metrics
    assert not after.advantages[5].any()


def test_equal_rewards_are_worth_nothing_in_groups_of_any_size() -> None:
    """The deviation of equal numbers is not 0 in float32, and compat has next to nothing beside it."""
    given = {name: values[:7] for name, values in drawn(1).items()} | {"rewards": torch.full((7,), 0.1)}
    found = estimate(EstimatorConfig(name="group_norm", compat="lmm_r1"), given, Alone(), group_size=7)
    assert found.advantages.abs().max() < 1e-6


def test_one_rollout_of_a_prompt_is_enough_where_none_are_compared() -> None:
    given, config = drawn(1), EstimatorConfig(name="reinforce")
    alone, four = (estimate(config, given, Alone(), group_size=size).advantages for size in (1, GROUP))
    assert torch.equal(alone, four) and four.any()


def test_the_kl_of_a_token_is_bounded_where_that_is_asked_for() -> None:
    given = drawn(1)
    given["ref"] = given["old"] + 30
    config = EstimatorConfig(name="reinforce", normalize="none", kl=KLConfig(coef=1.0, form="k3"))
    found = estimate(config, given, Alone(), kl_clamp=True)
    assert found.metrics["kl"] == pytest.approx(10, rel=1e-6)


def test_what_is_logged_is_the_mean_over_sampled_tokens_that_have_a_reward() -> None:
    given, config = drawn(3), EstimatorConfig(name="rloo", kl=KLConfig(coef=0.2))
    counted = given["mask"].bool() & ~given["rewards"].isnan()[:, None]
    mean = (given["old"] - given["ref"])[counted].mean().item()
    assert estimate(config, given, Alone()).metrics == pytest.approx({"kl": mean, "train/kl_coef": 0.2})


def test_a_coefficient_in_the_loss_follows_its_target_and_pays_nothing_in_the_reward() -> None:
    given = drawn(1)
    kl = KLConfig(coef=0.2, form="k3", place="loss", target=1e-3, horizon=100)
    config = EstimatorConfig(name="rloo", kl=kl)
    estimator = Estimator(config, Alone(), group_size=GROUP, eps=EPS, kl_clamp=False)  # type: ignore[arg-type]
    batch = {"completion_mask": torch.ones_like(given["mask"]), "tool_mask": given["mask"]}
    batch |= {"old_per_token_logps": given["old"], "ref_per_token_logps": given["ref"]}
    found, coefficients = [], []
    for _ in range(2):
        found.append(estimator(given["rewards"], batch, _none_needed, _none_needed))
        coefficients.append(estimator.loss_coef)
    assert coefficients == pytest.approx([0.2, 0.2 * (1 + 0.2 * 12 / 100)])
    assert [one.metrics for one in found] == [{"train/kl_coef": coef} for coef in coefficients]  # TRL logs the KL
    without = estimate(EstimatorConfig(name="rloo"), given, Alone())
    assert torch.equal(found[1].advantages, without.advantages)


def test_log_probs_are_asked_for_where_the_batch_holds_none() -> None:
    given, config = drawn(1), EstimatorConfig(name="rloo", kl=KLConfig(coef=0.2))
    masks = {"completion_mask": torch.ones_like(given["mask"]), "tool_mask": given["mask"]}
    estimator = Estimator(config, Alone(), group_size=GROUP, eps=EPS, kl_clamp=False)  # type: ignore[arg-type]
    found = estimator(
        given["rewards"], {**masks, "ref_per_token_logps": given["ref"]}, lambda _: given["old"], _none_needed
    )
    assert torch.equal(found.advantages, estimate(config, given, Alone()).advantages)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["group_norm", "reinforce"])
def test_training_weighs_each_token_by_its_advantage(ending: str, tmp_path: Path) -> None:
    """`group_norm` is TRL's GRPO, in the loss of a step too; `reinforce` trains with one rollout of a prompt."""
    options: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 4}
    if ending == "reinforce":
        options |= {"num_generations": 1, "estimator": EstimatorConfig(name="reinforce")}
        trainer = tiny.trainer(tiny.qwen25(), tmp_path, tiny.tasks(8), **options)
        trainer.train()
        steps = [log for log in trainer.state.log_history if "grad_norm" in log]
        assert trainer.num_generations == 1 and all(step["grad_norm"] > 0 for step in steps)
        assert not any("frac_reward_zero_std" in step for step in steps)
        assert len(trainer._logs["advantages"]) == 4 and all(trainer._logs["advantages"])  # TRL's are 0
        assert type(trainer.args.num_generations) is int
        return
    losses = []
    for estimator in (None, EstimatorConfig(name="group_norm")):
        trainer = tiny.trainer(tiny.qwen25(), tmp_path, tiny.tasks(8), estimator=estimator, **options)
        trainer.train()
        losses.append([(log["loss"], log["grad_norm"]) for log in trainer.state.log_history if "grad_norm" in log])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5, atol=1e-6)
