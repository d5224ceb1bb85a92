"""Training arguments: TRL's, and the few that a search trainer adds."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trl import GRPOConfig

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.redaction import redacted
from mmsearch_trl.evaluation.evaluator import EvaluationOptions
from mmsearch_trl.rollout.outage import OutageMonitor
from mmsearch_trl.trainer.critic_config import CriticConfig, check_critic
from mmsearch_trl.trainer.estimator_config import ALONE, EstimatorConfig
from mmsearch_trl.trainer.options import (
    REPLACED,
    check_batch_of_estimator,
    check_estimator,
    check_replaced,
    check_requirements,
)
from mmsearch_trl.trainer.sampler.sampler import SamplerOptions


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
    estimator: EstimatorConfig | None = field(
        default=None,
        metadata={"help": "How rewards become advantages: the section `estimator:`. Without it, as TRL does."},
    )
    critic: CriticConfig | None = field(
        default=None, metadata={"help": "The value model of `estimator.name: gae`: the section `critic:`."}
    )
    advantage_eps: float = field(
        default=1e-4, metadata={"help": "Added to the group's standard deviation; MMSearch-R1 has 1e-6, TRL 1e-4."}
    )
    trajectory_level_loss: bool = field(
        default=False,
        metadata={"help": "MMSearch-R1's traj_level_loss: one clipped ratio per trajectory; replaces loss_type."},
    )
    kl_clamp: bool = field(
        default=False,
        metadata={"help": "Bound each token's KL term by 10, as MMSearch-R1 and Search-R1 do; beyond, no gradient."},
    )
    filter_zero_variance_groups: bool = field(
        default=False,
        metadata={"help": "Drop prompts whose rollouts all earned the same reward and roll out new prompts instead."},
    )
    carry_surplus_groups: bool = field(
        default=False,
        metadata={
            "help": "Begin a batch with the groups that the one before had too many of (filtering only); their "
            "tokens are compared with the policy that sampled them. Otherwise they are dropped."
        },
    )
    max_refills: int = field(
        default=10, metadata={"help": "Rounds of new prompts per batch before the run stops (filtering only)."}
    )
    mask_infrastructure_failures: bool = field(
        default=True,
        metadata={
            "help": "Leave tokens out of the loss from the turn on whose search failed through no fault of it; "
            "protocol: mmsearch_r1_upstream trains on them."
        },
    )
    max_search_failure_share: float = field(
        default=0.2,
        metadata={
            "help": "Share of searches that may fail through no fault of the policy before the run is saved and ends; "
            "1 for any."
        },
    )
    max_rollout_failure_share: float = field(
        default=0.2,
        metadata={"help": "The same of rollouts, which an engine fails to write. An evaluation ends likewise."},
    )
    search_failure_window: int = field(
        default=200, metadata={"help": "Searches, and rollouts, of all processes, over which these shares are taken."}
    )
    freeze_vision: bool = field(
        default=False, metadata={"help": "Leave the vision tower as it is, adapters in it included."}
    )
    freeze_prefix: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Leave parameters as they are whose names begin so, such as [visual, language_model.layers.0]; "
            "`model.` before them may be left out."
        },
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
    max_sampler_difference: float = field(
        default=0.2,
        metadata={
            "help": "Mean difference of log-probs between vLLM and the trainer, on the tokens that vLLM wrote, above "
            "which the run ends: it samples from other weights."
        },
    )
    max_rollout_batch: int = field(
        default=64, metadata={"help": "Turns generated together by the transformers engine."}
    )
    max_trajectories_in_flight: int | None = field(
        default=None,
        metadata={
            "help": "Trajectories rolled out at a time, per process; default: all of a batch, and in an evaluation "
            "max_rollout_batch or per_device_eval_batch_size, the larger of the two."
        },
    )
    rollout_close_share: float = field(
        default=1.0,
        metadata={
            "help": "A training batch closes when this share of a process's trajectories has finished; the others are "
            "dropped. Below 1, what is trained depends on timing, and no two runs are alike."
        },
    )
    eval_temperature: float = field(default=0.0, metadata={"help": "Sampling temperature of evaluation."})
    save_traces: bool = field(
        default=True, metadata={"help": "Write every trajectory to <output_dir>/traces, for `mmsearch view`."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Remove the run that output_dir holds; without it, it is refused."}
    )

    def __post_init__(self) -> None:
        check_replaced(self, REPLACED)
        check_requirements(self)
        check_estimator(self)
        self.num_generations_eval = 1  # TRL would have evaluation batches hold whole groups
        if self.estimator is not None:
            self.beta = self.estimator.kl.coef  # TRL then loads the reference model and runs it
            if self.num_generations == 1 and self.estimator.name in ALONE:
                self.num_generations = _One(1)
            if self.estimator.name == "gae" and self.critic is None:
                self.critic = CriticConfig()
        try:
            super().__post_init__()
        except (ValueError, TypeError, ImportError) as error:  # how TRL and transformers refuse values
            raise UserError(str(error)) from error
        if self.num_generations == 1:
            self.num_generations = 1  # a plain number again
        check_batch_of_estimator(self)
        check_critic(self)
        if self.scale_rewards not in ("group", "batch", "none"):
            raise UserError(f"scale_rewards must be group, batch or none, got {self.scale_rewards!r}.")
        if self.max_trajectories_in_flight is not None and self.max_trajectories_in_flight < 1:
            raise UserError(f"max_trajectories_in_flight must be at least 1, got {self.max_trajectories_in_flight}.")
        if not 0 < self.rollout_close_share <= 1:
            raise UserError(f"rollout_close_share is a share, above 0 and up to 1; got {self.rollout_close_share}.")

    def to_dict(self) -> dict[str, Any]:
        """What trackers are told, without secrets."""
        estimator = None if self.estimator is None else asdict(self.estimator)
        critic = None if self.critic is None else asdict(self.critic)
        return redacted(super().to_dict() | {"estimator": estimator, "critic": critic})

    def evaluation_options(self, run_dir: Path, *, progress: bool = False) -> EvaluationOptions:
        """What an evaluation takes of these arguments."""
        return EvaluationOptions(
            run_dir=run_dir,
            temperature=self.eval_temperature,
            seed=self.seed,
            places=self.max_trajectories_in_flight or max(self.max_rollout_batch, self.per_device_eval_batch_size),
            save_traces=self.save_traces,
            progress=progress,
            outage=self.outage_monitor,
        )

    def outage_monitor(self, *, few: int = 20) -> OutageMonitor:
        """Ends a run, or an evaluation, whose engine or searches cannot work."""
        shares = self.max_rollout_failure_share, self.max_search_failure_share
        return OutageMonitor(*shares, self.search_failure_window, few=few)

    def sampler_options(self) -> SamplerOptions:
        """What samplers take of these arguments."""
        host = "127.0.0.1" if self.vllm_server_host == "0.0.0.0" else self.vllm_server_host
        one = self.vllm_server_base_url or f"http://{host}:{self.vllm_server_port}"
        return SamplerOptions(
            use_vllm=self.use_vllm,
            vllm_mode=self.vllm_mode,
            temperature=self.temperature,
            gradient_checkpointing_kwargs=self.gradient_checkpointing_kwargs,  # pyright: ignore[reportArgumentType]
            max_rollout_batch=self.max_rollout_batch,
            output_dir=str(self.output_dir),
            max_num_seqs=int(self.per_device_train_batch_size) * int(self.steps_per_generation or 1),
            vllm_server_urls=tuple(self.vllm_server_urls or [one]),
            vllm_server_timeout=self.vllm_server_timeout,
            vllm_request_timeout=self.vllm_request_timeout,
            vllm_group_port=self.vllm_group_port,
            vllm_lora_sync=self.vllm_lora_sync,
            vllm_engine_args=self.vllm_engine_args,
            vllm_tensor_parallel_size=self.vllm_tensor_parallel_size,
            vllm_enable_sleep_mode=self.vllm_enable_sleep_mode,
            vllm_model_impl=self.vllm_model_impl,
            vllm_max_model_length=self.vllm_max_model_length,
            vllm_gpu_memory_utilization=self.vllm_gpu_memory_utilization,
        )


class _One(int):
    """1, which passes TRL's check for two rollouts of a prompt: an estimator that compares none needs no second."""

    def __lt__(self, other: int) -> bool:
        return other != 2 and super().__lt__(other)
