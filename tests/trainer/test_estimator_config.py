"""Which keys of `estimator:` go together, and with which others of the trainer."""

from pathlib import Path
from typing import Any

import pytest
import tiny

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.trainer.estimator_config import EstimatorConfig, KLConfig


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "rloo", "gamma": 0.9}, r"estimator\.gamma is 1 for rloo"),
        ({"name": "reinforce", "gamma": 0.0}, r"estimator\.gamma must be above 0"),
        ({"name": "group_norm", "normalize": "mean"}, r"estimator\.normalize is not for group_norm"),
        ({"name": "dr_grpo", "normalize": "none"}, r"estimator\.normalize is not for dr_grpo"),
        ({"name": "rloo", "reward_clip": (1.0, -1.0)}, r"estimator\.reward_clip is \[least, most\]"),
    ],
    ids=str,
)
def test_keys_that_contradict_each_other_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        EstimatorConfig(**keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"coef": -0.1}, "coef must be 0 or more"),
        ({"coef": float("nan")}, "coef must be 0 or more"),
        ({"coef": 0.1, "place": "loss"}, "form k1 has a gradient of mean 0 in the loss"),
        ({"coef": 0.1, "target": 0.0}, "target must be above 0"),
        ({"target": 0.1}, "target scales estimator.kl.coef, and that is 0"),
        ({"coef": 0.1, "target": 0.1, "horizon": 0}, "horizon must be at least 1"),
        ({"coef": 0.1, "horizon": 5}, "horizon needs estimator.kl.target"),
    ],
    ids=str,
)
def test_a_kl_term_that_does_nothing_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^estimator\.kl\.{message}"):
        KLConfig(**keys)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rloo", {"trajectory_level_loss": True}, "trajectory_level_loss is of the advantages that TRL makes"),
        ("rloo", {"scale_rewards": "batch"}, "scale_rewards is of the advantages that TRL makes"),
        ("rloo", {"multi_objective_aggregation": "normalize_then_sum"}, "multi_objective_aggregation is of the"),
        ("rloo", {"beta": 0.1}, r"beta is estimator\.kl\.coef"),
        ("rloo", {"advantage_eps": 1e-6}, "advantage_eps is for estimator.name group_norm"),
        ("rloo", {"num_generations": 1}, "num_generations must be at least 2 for estimator.name rloo"),
        ("group_norm", {"num_generations": 1}, "num_generations must be at least 2 for estimator.name group_norm"),
        ("dr_grpo", {"num_generations": 1, "loss_type": "dr_grpo"}, "num_generations must be at least 2"),
        (
            "reinforce",
            {"num_generations": 1, "filter_zero_variance_groups": True},
            "filter_zero_variance_groups would",
        ),
        ("dr_grpo", {}, "loss_type must be dr_grpo for estimator.name dr_grpo"),
        ("rloo", {"kl_clamp": True}, r"kl_clamp bounds estimator\.kl\.form k3, and that is k1"),
    ],
    ids=str,
)
def test_what_an_estimator_does_without_is_refused(
    name: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        tiny.config(tmp_path, estimator=EstimatorConfig(name=name), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keys", "options", "message"),
    [
        ({"name": "dr_grpo"}, {"loss_type": "dr_grpo"}, r"loss_type must be bnpo .*under compat lmm_r1"),
        ({"name": "group_norm"}, {"advantage_eps": 1e-6}, "advantage_eps is for estimator.name group_norm without"),
        ({"name": "rloo", "kl": KLConfig(coef=0.1, form="k3", place="loss")}, {}, "use_bias_correction_kl must be"),
        ({"name": "rloo"}, {"filter_zero_variance_groups": True}, "filter_zero_variance_groups joins rollouts"),
    ],
    ids=str,
)
def test_compat_refuses_what_lmm_r1_does_not_do(
    keys: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        tiny.config(tmp_path, estimator=EstimatorConfig(compat="lmm_r1", **keys), **options)


def test_one_rollout_of_a_prompt_is_refused_without_an_estimator(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 2 generations per prompt"):
        tiny.config(tmp_path, num_generations=1)


def test_a_batch_that_could_turn_the_coefficient_negative_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"estimator\.kl\.horizon must be more than a fifth of the 40 trajectories"):
        estimator = EstimatorConfig(name="rloo", kl=KLConfig(coef=0.1, target=0.1, horizon=8))
        tiny.config(tmp_path, per_device_train_batch_size=40, estimator=estimator)
    estimator = EstimatorConfig(name="rloo", kl=KLConfig(coef=0.1, target=0.1, horizon=9))
    assert tiny.config(tmp_path, per_device_train_batch_size=40, estimator=estimator).beta == 0.1


def test_what_trackers_are_told_holds_the_keys_of_the_section(tmp_path: Path) -> None:
    told = tiny.config(tmp_path, estimator=EstimatorConfig(name="rloo")).to_json_string()
    assert '"name": "rloo"' in told
