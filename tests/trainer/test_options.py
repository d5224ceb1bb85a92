"""Every option of a configuration is honoured or refused: a walk over all of them, looking for the code that reads it.

That an option is read does not say that it does something; what is read and replaced later is in the tables of
`trainer/options.py`, and what only goes with another option has its own rows below.
"""

import importlib
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import pytest
import tiny
from option_reads import attributes_read, read_by_run

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.config import DataConfig
from mmsearch_trl.recipe.model_config import RecipeModelConfig
from mmsearch_trl.rewards.direct import DirectRewardConfig
from mmsearch_trl.rewards.mmsearch import RewardConfig
from mmsearch_trl.rewards.overlong import OverlongConfig
from mmsearch_trl.rewards.search_r1 import SearchR1RewardConfig
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.search.config import SearchConfig
from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.trainer.critic_config import CriticConfig
from mmsearch_trl.trainer.estimator_config import EstimatorConfig, KLConfig
from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer
from mmsearch_trl.trainer.options import REPLACED, REPLACED_SUPERVISED, REQUIREMENTS
from mmsearch_trl.trainer.sft import MMSearchSFTConfig, MMSearchSFTTrainer


HANDED_ON = [
    *(f"transformers.trainer_{name}" for name in ("callback", "utils", "pt_utils", "optimizer", "jit_checkpoint")),
    *(f"transformers.integrations.{name}" for name in ("integration_utils", "deepspeed", "fsdp")),
    "trl.trainer.callbacks",
    *(f"mmsearch_trl.{name}" for name in ("train", "sft", "recipe.recipe", "hub.push")),
    *(f"mmsearch_trl.trainer.{name}" for name in ("collector", "trajectory_loss", "micro_batches", "batch_position")),
    *(f"mmsearch_trl.trainer.{name}" for name in ("checks", "estimators")),
]
"""Modules that a trainer, or a script, hands its arguments to."""

TRAINERS = {
    MMSearchGRPOConfig: (MMSearchGRPOTrainer, REPLACED),
    MMSearchSFTConfig: (MMSearchSFTTrainer, REPLACED_SUPERVISED),
}
WITHOUT_A_READER = {
    "do_train": "training is what the scripts do",
    "local_rank": "transformers takes it from the environment",
    "vllm_importance_sampling_cap": "TRL's old name of vllm_importance_sampling_clip_max, which it sets",
}
OPTIONS = [(config, field) for config in TRAINERS for field in fields(config)]
REFUSED = [(config, name) for config, (_, replaced) in TRAINERS.items() for name in replaced]


@pytest.fixture(scope="module")
def read() -> dict[type, set[str]]:
    modules = [importlib.import_module(name) for name in HANDED_ON]
    return {config: read_by_run(trainer, config, modules) for config, (trainer, _) in TRAINERS.items()}


@pytest.mark.parametrize(("config", "option"), OPTIONS, ids=lambda value: getattr(value, "name", str(value)))
def test_an_option_is_read_by_code_that_runs_or_refused(
    config: type, option: Field[Any], read: dict[type, set[str]]
) -> None:
    known = read[config] | set(TRAINERS[config][1]) | set(WITHOUT_A_READER)
    assert option.name in known, f"nothing reads {option.name}: honour it, or refuse it in trainer/options.py"


def test_what_has_no_reader_is_not_excused_in_vain(read: dict[type, set[str]]) -> None:
    assert not read[MMSearchGRPOConfig] & set(WITHOUT_A_READER)


@pytest.mark.parametrize(("config", "name"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_an_option_that_is_replaced_is_refused_by_name_and_its_default_is_not(
    config: Any, name: str, tmp_path: Path
) -> None:
    [option] = [field for field in fields(config) if field.name == name]
    default = option.default if option.default_factory is MISSING else option.default_factory()
    settings: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    config(**settings, **{name: default})
    with pytest.raises(UserError, match=f"^{name} has no effect here: .+ Leave it out") as caught:
        config(**settings, **{name: _another(default)})
    assert len(str(caught.value)) < 400


def _another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return [*value, "x"] if isinstance(value, list) else "x"


TRAJECTORY = {"trajectory_level_loss": True}
SERVER, COLOCATED = {"use_vllm": True, "vllm_mode": "server"}, {"use_vllm": True, "vllm_mode": "colocate"}
UNMET: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    # The option, what leaves it without an effect, and what gives it one.
    ({"delta": 2.0}, {"loss_type": "cispo"}, {}),
    ({"delta": 2.0}, TRAJECTORY, {"loss_type": "luspo"}),
    ({"epsilon": 0.3}, {"loss_type": "sapo"}, {"loss_type": "cispo"}),
    ({"epsilon_high": 0.3}, {"loss_type": "vespo"}, TRAJECTORY),
    ({"importance_sampling_level": "sequence"}, {"loss_type": "vespo"}, {"loss_type": "grpo"}),
    ({"importance_sampling_level": "sequence"}, TRAJECTORY, {"loss_type": "grpo"}),
    ({"top_entropy_quantile": 0.2}, TRAJECTORY, {}),
    ({"use_adaptive_entropy": True}, TRAJECTORY, {}),
    ({"off_policy_mask_threshold": 0.5}, TRAJECTORY, {}),
    ({"sapo_temperature_neg": 2.0}, {}, {"loss_type": "sapo"}),
    ({"sapo_temperature_pos": 2.0}, {"loss_type": "sapo", **TRAJECTORY}, {"loss_type": "sapo"}),
    *(({name: 9.0}, {}, {"loss_type": "vespo"}) for name in ("vespo_k_pos", "vespo_lambda_pos")),
    *(({name: 9.0}, {"loss_type": "dapo"}, {"loss_type": "vespo"}) for name in ("vespo_k_neg", "vespo_lambda_neg")),
    *(
        ({name: 0.7}, {"entropy_coef": 0.1}, {"use_adaptive_entropy": True})
        for name in ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target")
    ),
    ({"ref_model_mixup_alpha": 0.3}, {"beta": 0.1}, {"sync_ref_model": True, "beta": 0.1}),
    ({"ref_model_sync_steps": 8}, {}, {"sync_ref_model": True, "beta": 0.1}),
    ({"advantage_eps": 1e-6}, {"multi_objective_aggregation": "normalize_then_sum"}, {}),
    ({"scale_rewards": "batch"}, {"multi_objective_aggregation": "normalize_then_sum"}, {}),
    ({"carry_surplus_groups": True}, {}, {"filter_zero_variance_groups": True}),
    ({"max_completion_length": 64}, {}, {"loss_type": "dr_grpo"}),
    ({"max_completion_length": 64}, {"loss_type": "dr_grpo", **TRAJECTORY}, {"loss_type": "dr_grpo"}),
    ({"vllm_model_impl": "transformers"}, SERVER, COLOCATED),
    ({"vllm_enable_sleep_mode": True}, SERVER, COLOCATED),
    ({"vllm_gpu_memory_utilization": 0.5}, SERVER, COLOCATED),
    ({"vllm_max_model_length": 64}, SERVER, COLOCATED),
    ({"vllm_tensor_parallel_size": 2}, SERVER, COLOCATED),
    ({"vllm_engine_args": {"enforce_eager": True}}, SERVER, COLOCATED),
    ({"vllm_server_base_url": "http://h:1"}, COLOCATED, SERVER),
    ({"vllm_server_urls": ["http://h:1"]}, COLOCATED, SERVER),
    ({"vllm_server_host": "h"}, COLOCATED, SERVER),
    ({"vllm_server_port": 8001}, COLOCATED, SERVER),
    ({"vllm_server_timeout": 1.0}, COLOCATED, {}),
    ({"vllm_request_timeout": 1.0}, COLOCATED, SERVER),
    ({"vllm_group_port": 5}, COLOCATED, SERVER),
]


@pytest.mark.parametrize(("option", "without", "together"), UNMET, ids=str)
def test_an_option_that_goes_with_another_is_refused_without_it(
    option: dict[str, Any], without: dict[str, Any], together: dict[str, Any], tmp_path: Path
) -> None:
    [name] = option
    with pytest.raises(UserError, match=f"^{name} "):
        tiny.config(tmp_path, **option, **without)
    assert getattr(tiny.config(tmp_path, **option, **together), name) == option[name]


def test_every_option_that_goes_with_another_has_a_row_above() -> None:
    named = {name for requirement in REQUIREMENTS for name in requirement.options}
    assert named == {name for option, *_ in UNMET for name in option}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"loss_type": "bnop"}, "loss_type must be one of .*'bnop'; did you mean `bnpo`"),
        ({"vllm_mode": "colocated"}, "vllm_mode must be one of server, colocate"),
        ({"importance_sampling_level": "tokens"}, "importance_sampling_level must be one of"),
        ({"multi_objective_aggregation": "sum"}, "multi_objective_aggregation must be one of"),
        ({"vllm_importance_sampling_mode": "token"}, "vllm_importance_sampling_mode must be one of"),
        ({"scale_rewards": "groups"}, "scale_rewards must be group, batch or none"),
        # What TRL refuses where it sees that vLLM is used, which is hidden from it while it sets up.
        (
            {"loss_type": "vespo", "use_vllm": True, "vllm_importance_sampling_mode": "sequence_mask"},
            "vespo needs vllm_importance_sampling_mode",
        ),
        ({"use_vllm": True, **TRAJECTORY}, "set it to sequence_truncate or sequence_mask"),
    ],
    ids=str,
)
def test_a_value_that_nothing_knows_is_refused_at_once(option: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        tiny.config(tmp_path, **option)


@pytest.mark.parametrize(
    "config",
    [
        RecipeModelConfig,
        DataConfig,
        Limits,
        RewardConfig,
        SearchR1RewardConfig,
        DirectRewardConfig,
        SearchConfig,
        EstimatorConfig,
        KLConfig,
        OverlongConfig,
        CriticConfig,
    ],
    ids=str,
)
def test_every_key_of_the_other_sections_is_read(config: Any) -> None:
    package = Path(importlib.import_module("mmsearch_trl").__file__ or "").parent
    paths = [path.relative_to(package).with_suffix("").parts for path in package.rglob("*.py")]
    modules = [importlib.import_module(".".join(("mmsearch_trl", *path))) for path in paths if path[-1] != "__init__"]
    trl = importlib.import_module("trl.trainer.utils")
    missing = {field.name for field in fields(config)} - attributes_read([*modules, trl])
    assert not missing


def test_an_evaluation_batch_need_not_hold_whole_groups(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_generations": 4, "per_device_eval_batch_size": 6, "eval_steps": 1}
    assert tiny.config(tmp_path, **options, eval_strategy="steps").per_device_eval_batch_size == 6
