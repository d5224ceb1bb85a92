"""Which options of TRL and transformers have a meaning here: an option is honoured or refused, and none is ignored.

Three things are refused: an option of something that this package does in its own way, at any value but its default;
an option that only goes with another that was not chosen; and a value that nothing knows. A test walks over every
option that there is and looks for the code that reads it (`tests/trainer/test_options.py`).

Options whose very name says what they belong to (`vllm_*`, `lr_sigmoid_*`) may stay where that is switched off.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, NamedTuple

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.nearest import did_you_mean
from mmsearch_trl.trainer.estimator_config import ALONE


_ROLLOUTS = "rollouts have an engine and a loop of their own"
_TEMPLATE = "prompts and replies are the protocol's, in the model's own chat template"
_EVALUATION = "evaluations roll out every row once and are scored by the rewards"
_LOSS = "the loss has no labels"
_BIASED = "sampling from another distribution than the trained one biases the policy ratio"
_DEMONSTRATIONS = "demonstrations are put into tokens by the protocol that rollouts use"

REPLACED: Mapping[str, str] = {
    "generation_kwargs": _ROLLOUTS,
    "cache_implementation": _ROLLOUTS,
    "vllm_structured_outputs_regex": _ROLLOUTS,
    "use_transformers_continuous_batching": _ROLLOUTS,
    "use_transformers_paged": _ROLLOUTS,
    "transformers_continuous_batching_config": _ROLLOUTS,
    "max_tool_calling_iterations": f"{_ROLLOUTS} (max_turns of the limits)",
    "chat_template_kwargs": _TEMPLATE,
    "pad_to_multiple_of": "padding is cut off again before a forward pass",
    "top_p": _BIASED,
    "top_k": _BIASED,
    "min_p": _BIASED,
    "repetition_penalty": _BIASED,
    "log_multimodal": "images are written to <output_dir>/traces",
    "ds3_gather_for_generation": (
        "ranks roll out different numbers of turns, and with weights that are gathered layer by layer they would wait "
        "for each other for ever"
    ),
    "num_generations_eval": _EVALUATION,
    "prediction_loss_only": _EVALUATION,
    "eval_do_concat_batches": _EVALUATION,
    "eval_accumulation_steps": _EVALUATION,
    "eval_use_gather_object": _EVALUATION,
    "include_for_metrics": _EVALUATION,
    "batch_eval_metrics": _EVALUATION,
    "bf16_full_eval": f"{_EVALUATION}, by the engine that samples for training",
    "fp16_full_eval": f"{_EVALUATION}, by the engine that samples for training",
    "label_smoothing_factor": _LOSS,
    "label_names": _LOSS,
    "average_tokens_across_devices": "loss_type says what the loss is averaged over",
    "train_sampling_strategy": "the order of prompts is that of shuffle_dataset and seed",
    "length_column_name": "the order of prompts is that of shuffle_dataset and seed",
    "data_seed": "the order of prompts follows from seed",
    "remove_unused_columns": "rollouts and rewards need the other columns",
    "do_predict": "there is nothing to predict",
    "enable_jit_checkpoint": "SIGTERM saves the last whole step by itself, and this would save the middle of one",
}
"""Options of `GRPOConfig` that steer what this package does in its own way, with the reason."""

REPLACED_SUPERVISED: Mapping[str, str] = {
    "chat_template_path": _TEMPLATE,
    "eos_token": _TEMPLATE,
    "pad_token": _TEMPLATE,
    "dataset_text_field": _DEMONSTRATIONS,
    "dataset_num_proc": _DEMONSTRATIONS,
    "truncation_mode": "a demonstration over max_length is left out whole",
    "shuffle_dataset": "the order of demonstrations is that of train_sampling_strategy and seed",
    "packing": _DEMONSTRATIONS,
    "packing_strategy": _DEMONSTRATIONS,
    "padding_free": _DEMONSTRATIONS,
    "pad_to_multiple_of": _DEMONSTRATIONS,
    "eval_packing": _DEMONSTRATIONS,
    "completion_only_loss": "only what the assistant says is learned",
    "assistant_only_loss": "only what the assistant says is learned",
    "label_names": "the labels are those of what the assistant says",
    "do_predict": "there is nothing to predict",
}
"""The same of `SFTConfig`."""

_AS_DEFAULT: Mapping[str, tuple[Any, ...]] = {"num_generations_eval": (1,), "pad_to_multiple_of": (None,)}
"""Values that say what is done in any case."""

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_mode": ("server", "colocate"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    "vllm_lora_sync": ("auto", "adapter", "merged"),
}
_CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
"""Losses of a clipped ratio, in TRL's own form."""


class Requirement(NamedTuple):
    """Options that only do something where another allows it.

    Attributes:
        met: Of the configuration; asked only where one of the options is not at its default.
        words: What is needed.
    """

    options: tuple[str, ...]
    met: Callable[[Any], bool]
    words: str


def _loss(*names: str) -> Callable[[Any], bool]:
    return lambda args: args.loss_type in names and not args.trajectory_level_loss


def _vllm(mode: str) -> Callable[[Any], bool]:
    return lambda args: not args.use_vllm or args.vllm_mode == mode


REQUIREMENTS = (
    Requirement(("delta",), _loss(*_CLIPPED), f"needs loss_type {', '.join(_CLIPPED)}, no trajectory_level_loss"),
    Requirement(
        ("epsilon", "epsilon_high"),
        lambda args: args.loss_type not in ("sapo", "vespo") or args.trajectory_level_loss,
        "clips nothing under loss_type sapo and vespo",
    ),
    Requirement(
        ("importance_sampling_level",),
        lambda args: args.loss_type != "vespo" and not args.trajectory_level_loss,
        "has no effect under loss_type vespo and trajectory_level_loss, which weigh whole trajectories",
    ),
    Requirement(
        ("top_entropy_quantile", "use_adaptive_entropy", "off_policy_mask_threshold"),
        lambda args: not args.trajectory_level_loss,
        "weighs tokens, and trajectory_level_loss weighs whole trajectories",
    ),
    Requirement(("sapo_temperature_neg", "sapo_temperature_pos"), _loss("sapo"), "needs loss_type sapo"),
    Requirement(
        ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"), _loss("vespo"), "needs loss_type vespo"
    ),
    Requirement(
        ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
        lambda args: args.use_adaptive_entropy,
        "needs use_adaptive_entropy",
    ),
    Requirement(
        ("ref_model_mixup_alpha", "ref_model_sync_steps"), lambda args: args.sync_ref_model, "needs sync_ref_model"
    ),
    Requirement(
        ("advantage_eps", "scale_rewards"),
        lambda args: args.multi_objective_aggregation == "sum_then_normalize",
        "has no effect under multi_objective_aggregation normalize_then_sum, whose scale and epsilon are TRL's",
    ),
    Requirement(
        ("carry_surplus_groups",),
        lambda args: args.filter_zero_variance_groups,
        "needs filter_zero_variance_groups: without it no batch has too many groups",
    ),
    Requirement(
        ("max_completion_length",),
        _loss("dr_grpo"),
        "only divides the loss of loss_type dr_grpo; the length of a rollout is that of the limits "
        "(rollout.max_response_tokens)",
    ),
    Requirement(
        (
            *("vllm_model_impl", "vllm_enable_sleep_mode", "vllm_gpu_memory_utilization", "vllm_max_model_length"),
            *("vllm_tensor_parallel_size", "vllm_engine_args"),
        ),
        _vllm("colocate"),
        "is for vllm_mode colocate; a server is started with options of its own",
    ),
    Requirement(
        (
            *("vllm_server_base_url", "vllm_server_urls", "vllm_server_host", "vllm_server_port"),
            *("vllm_server_timeout", "vllm_request_timeout", "vllm_group_port"),
        ),
        _vllm("server"),
        "is for vllm_mode server",
    ),
)


def check_replaced(args: Any, replaced: Mapping[str, str]) -> None:
    """Refuse the options of a table, except at their defaults; before TRL derives values of them.

    Raises:
        UserError: the message names the first of them.
    """
    for name in _changed(args, replaced):
        value = getattr(args, name)
        if value not in _AS_DEFAULT.get(name, ()):
            raise UserError(f"{name} has no effect here: {replaced[name]}. Leave it out (got {value!r}).")


def check_choices(values: Mapping[str, Any]) -> None:
    """Refuse a value that nothing knows, of those options that are given.

    Raises:
        UserError: the message names the first of them.
    """
    for name, choices in _CHOICES.items():
        if name in values and values[name] not in choices:
            near = did_you_mean(str(values[name]), choices)
            raise UserError(f"{name} must be one of {', '.join(choices)}, got {values[name]!r}{near}")


def check_requirements(args: Any) -> None:
    """Refuse unknown values, and options of `MMSearchGRPOConfig` that others of it leave without an effect.

    Raises:
        UserError: the message names the first of them.
    """
    check_choices({name: getattr(args, name) for name in _CHOICES})
    for requirement in REQUIREMENTS:
        for name in _changed(args, requirement.options):
            if not requirement.met(args):
                raise UserError(f"{name} {requirement.words}. Leave it out (got {getattr(args, name)!r}).")
    corrected = args.use_vllm and args.vllm_importance_sampling_correction
    by_token = args.vllm_importance_sampling_mode.startswith("token")
    if corrected and by_token and args.trajectory_level_loss:
        raise UserError(
            "trajectory_level_loss weighs whole trajectories, which vllm_importance_sampling_mode "
            f"{args.vllm_importance_sampling_mode} cannot: set it to sequence_truncate or sequence_mask, or "
            "vllm_importance_sampling_correction to false"
        )
    if corrected and not by_token and args.loss_type == "vespo" and not args.trajectory_level_loss:
        raise UserError("loss_type vespo needs vllm_importance_sampling_mode token_truncate or token_mask")


def check_estimator(args: Any) -> None:
    """Refuse options of `MMSearchGRPOConfig` that its estimator does without, or cannot work with.

    Raises:
        UserError: the message names the first of them.
    """
    estimator = args.estimator
    if estimator is None:
        return
    name, lmm_r1, kl = estimator.name, estimator.compat == "lmm_r1", estimator.kl
    for option in _changed(args, ("scale_rewards", "multi_objective_aggregation", "trajectory_level_loss")):
        raise UserError(
            f"{option} is of the advantages that TRL makes, and estimator.name {name} makes those of every token: "
            f"leave it out (got {getattr(args, option)!r})"
        )
    if args.beta not in (0.0, kl.coef):
        raise UserError(f"beta is estimator.kl.coef where there is an estimator: leave it out (got {args.beta})")
    if _changed(args, ["advantage_eps"]) and (name != "group_norm" or lmm_r1):
        raise UserError(
            f"advantage_eps is for estimator.name group_norm without compat: leave it out, or at 1e-4 (name: {name})"
        )
    if args.num_generations < 2 and name not in ALONE:
        raise UserError(
            f"num_generations must be at least 2 for estimator.name {name}, which compares the rollouts of a prompt, "
            f"got {args.num_generations}; {', '.join(sorted(ALONE))} takes 1"
        )
    if args.num_generations < 2 and args.filter_zero_variance_groups:
        raise UserError("filter_zero_variance_groups would drop every prompt of one rollout: num_generations is 1")
    wanted = "bnpo" if lmm_r1 else "dr_grpo"
    if name == "dr_grpo" and args.loss_type != wanted:
        of = "under compat lmm_r1" if lmm_r1 else "as its paper has it; compat lmm_r1 takes bnpo"
        raise UserError(f"loss_type must be {wanted} for estimator.name dr_grpo ({of}), got {args.loss_type!r}")
    if args.kl_clamp and kl.form != "k3":
        raise UserError(f"kl_clamp bounds estimator.kl.form k3, and that is {kl.form}: leave it out")
    if lmm_r1 and kl.coef and kl.place == "loss" and args.use_bias_correction_kl:
        raise UserError("use_bias_correction_kl must be false for a KL term in the loss under estimator.compat lmm_r1")
    if lmm_r1 and args.filter_zero_variance_groups and estimator.normalization != "none":
        raise UserError(
            "filter_zero_variance_groups joins rollouts to a batch, which LMM-R1 normalises one by one: take it out, "
            "or estimator.compat"
        )


def check_batch_of_estimator(args: Any) -> None:
    """Refuse a batch that could turn the coefficient of the KL term negative; after TRL has derived its size.

    Raises:
        UserError: the message gives the size.
    """
    kl = args.estimator.kl if args.estimator is not None else None
    if kl is not None and kl.target is not None and kl.horizon <= 0.2 * args.generation_batch_size:
        raise UserError(
            f"estimator.kl.horizon must be more than a fifth of the {args.generation_batch_size} trajectories of a "
            f"batch, got {kl.horizon}: one batch could take the whole coefficient away"
        )


def _changed(args: Any, names: Iterable[str]) -> list[str]:
    """Those of the options that are not at their defaults."""
    known = {field.name: field for field in fields(args)}
    return [name for name in names if getattr(args, name) != _default(known[name])]


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default
