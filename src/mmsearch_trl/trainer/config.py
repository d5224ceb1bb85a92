"""Training arguments: TRL's, and the few that a search trainer adds."""

from dataclasses import dataclass, field
from typing import Any, Literal

from trl import GRPOConfig

from mmsearch_trl.core.errors import UserError


@dataclass
class MMSearchGRPOConfig(GRPOConfig):
    """`trl.GRPOConfig` with the options of on-demand search training.

    Two defaults differ from TRL's: `vllm_importance_sampling_mode` is `token_truncate`, since a ratio multiplied over
    a whole multi-turn sequence soon leaves any clip range; `log_multimodal` is off, since it gathers every image on
    every rank (they are kept once, in the traces).

    Raises:
        UserError: Options contradict each other; the message names them.
    """

    vllm_importance_sampling_mode: str = field(
        default="token_truncate", metadata={"help": "How sampling and training probabilities are reconciled."}
    )
    log_multimodal: bool = field(
        default=False, metadata={"help": "Must stay off: images are written once, to the run's traces."}
    )
    advantage_eps: float = field(
        default=1e-4, metadata={"help": "Added to the group's standard deviation; MMSearch-R1 has 1e-6, TRL 1e-4."}
    )
    trajectory_level_loss: bool = field(
        default=False,
        metadata={"help": "MMSearch-R1's traj_level_loss: one clipped ratio per trajectory; replaces loss_type."},
    )
    filter_zero_variance_groups: bool = field(
        default=False,
        metadata={"help": "Drop prompts whose rollouts all earned the same reward and roll out new prompts instead."},
    )
    max_refills: int = field(
        default=10, metadata={"help": "Rounds of new prompts per batch before the run stops (filtering only)."}
    )
    mask_infrastructure_failures: bool = field(
        default=True,
        metadata={"help": "Leave tokens out of the loss from the turn on whose search failed through no fault of it."},
    )
    max_search_failure_share: float = field(
        default=0.2,
        metadata={
            "help": "Share of searches that may fail through no fault of the policy before the run is saved and ends."
        },
    )
    search_failure_window: int = field(
        default=200, metadata={"help": "Searches, of all processes, over which that share is taken."}
    )
    freeze_vision: bool = field(
        default=False, metadata={"help": "Leave the vision tower as it is, adapters in it included."}
    )
    lr_sigmoid_ratio: float | None = field(
        default=None, metadata={"help": "Share of the learning rate that MMSearch-R1's sigmoid decay removes."}
    )
    lr_sigmoid_step: int = field(default=45, metadata={"help": "Step around which the sigmoid decay falls."})
    vllm_server_urls: list[str] | None = field(
        default=None,
        metadata={"help": "Addresses of vLLM servers, where there are several; replaces vllm_server_base_url."},
    )
    vllm_request_timeout: float = field(
        default=600.0, metadata={"help": "Seconds for one attempt at a turn on a server, its queue included."}
    )
    vllm_engine_args: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "Arguments of vLLM's engine for vllm_mode: colocate, such as {max_num_batched_tokens: 8192, "
            "limit_mm_per_prompt: {image: 8}, mm_processor_kwargs: {...}, enforce_eager: true}."
        },
    )
    vllm_lora_sync: str = field(
        default="auto",
        metadata={
            "help": "What vLLM is sent of a LoRA policy: adapter (the adapter alone), merged (all weights, merged "
            "beside the base weights), or auto: the adapter where vLLM can apply it."
        },
    )
    max_rollout_batch: int = field(
        default=64, metadata={"help": "Turns generated together by the transformers engine."}
    )
    max_trajectories_in_flight: int | None = field(
        default=None,
        metadata={
            "help": "Trajectories rolled out at a time, per process; fewer while the engine says that its KV cache is "
            "full. Default: all of a batch."
        },
    )
    kv_high_water: float = field(
        default=0.9, metadata={"help": "KV-cache usage from which fewer trajectories are rolled out at a time."}
    )
    rollout_close_share: float = field(
        default=1.0,
        metadata={
            "help": "A training batch closes when this share of a process's trajectories has finished; the others are "
            "stragglers. Below 1, what is trained depends on timing, and no two runs are alike."
        },
    )
    straggler_policy: Literal["drop", "carry"] = field(
        default="drop",
        metadata={
            "help": "Stragglers are dropped, or carried: they go on beside the next batches and are trained when they "
            "end, corrected for their older weights. Carrying needs use_vllm, whose importance sampling corrects."
        },
    )
    eval_temperature: float = field(default=0.0, metadata={"help": "Sampling temperature of evaluation."})
    save_traces: bool = field(
        default=True, metadata={"help": "Write every trajectory to <output_dir>/traces, for `mmsearch view`."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.log_multimodal:
            raise UserError("log_multimodal must be false: images are written to <output_dir>/traces instead.")
        if self.mask_truncated_completions:
            raise UserError(
                "mask_truncated_completions hides tokens from attention and breaks image positions; leave it false."
            )
        if not self.ds3_gather_for_generation:
            raise UserError(
                "ds3_gather_for_generation must stay true: ranks roll out different numbers of turns, and with "
                "weights that are gathered layer by layer they would wait for each other for ever."
            )
        if self.use_vllm and (self.generation_kwargs or self.vllm_structured_outputs_regex):
            raise UserError(
                "generation_kwargs and vllm_structured_outputs_regex have no effect on rollouts: leave them out."
            )
        if self.vllm_lora_sync not in ("auto", "adapter", "merged"):
            raise UserError(f"vllm_lora_sync must be auto, adapter or merged, got {self.vllm_lora_sync!r}.")
        _check_rollout(self)
        if self.top_p < 1.0 or self.top_k > 0 or self.min_p is not None or self.repetition_penalty != 1.0:
            raise UserError(
                "top_p, top_k, min_p and repetition_penalty must stay at 1, 0, none and 1: sampling from another "
                "distribution than the trained one biases the policy ratio."
            )


def _check_rollout(args: MMSearchGRPOConfig) -> None:
    """Raises ValueError where the options of admission and of stragglers cannot be met."""
    if args.max_trajectories_in_flight is not None and args.max_trajectories_in_flight < 1:
        raise UserError(f"max_trajectories_in_flight must be at least 1, got {args.max_trajectories_in_flight}.")
    for name in ("kv_high_water", "rollout_close_share"):
        if not 0 < getattr(args, name) <= 1:
            raise UserError(f"{name} is a share, above 0 and up to 1; got {getattr(args, name)}.")
    if args.straggler_policy not in ("drop", "carry"):
        raise UserError(f"straggler_policy must be 'drop' or 'carry', got {args.straggler_policy!r}.")
    if args.straggler_policy == "drop":
        return
    refused = {
        "use_vllm is false, and the correction of older samples by their log-probs comes with it": not args.use_vllm,
        "vllm_importance_sampling_correction is false": not args.vllm_importance_sampling_correction,
        "trajectory_level_loss has no correction of older samples": args.trajectory_level_loss,
        "filter_zero_variance_groups picks groups before stragglers end": args.filter_zero_variance_groups,
        "scale_rewards: batch has no deviation for another batch's trajectory": args.scale_rewards == "batch",
        "multi_objective_aggregation must be sum_then_normalize": (
            args.multi_objective_aggregation != "sum_then_normalize"
        ),
        "per_device_train_batch_size * steps_per_generation must be a multiple of num_generations": (
            args.per_device_train_batch_size * int(args.steps_per_generation or 1) % int(args.num_generations or 1)
        ),
    }
    for reason, applies in refused.items():
        if applies:
            raise UserError(f"straggler_policy: carry cannot be met: {reason}. Change that, or set it to drop.")
