"""Training arguments: TRL's, and the few that a search trainer adds."""

from dataclasses import dataclass, field

from trl import GRPOConfig


@dataclass
class MMSearchGRPOConfig(GRPOConfig):
    """`trl.GRPOConfig` with the options of on-demand search training.

    Two defaults differ from TRL's: `vllm_importance_sampling_mode` is `token_truncate`, since a ratio multiplied over
    a whole multi-turn sequence soon leaves any clip range; `log_multimodal` is off, since it gathers every picture on
    every rank (they are kept once, in the traces).

    Raises:
        ValueError: Options contradict each other; the message names them.
    """

    vllm_importance_sampling_mode: str = field(
        default="token_truncate", metadata={"help": "How sampling and training probabilities are reconciled."}
    )
    log_multimodal: bool = field(
        default=False, metadata={"help": "Must stay off: pictures are written once, to the run's traces."}
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
    freeze_vision: bool = field(
        default=False, metadata={"help": "Leave the vision tower as it is, adapters in it included."}
    )
    lr_sigmoid_ratio: float | None = field(
        default=None, metadata={"help": "Share of the learning rate that MMSearch-R1's sigmoid decay removes."}
    )
    lr_sigmoid_step: int = field(default=45, metadata={"help": "Step around which the sigmoid decay falls."})
    max_rollout_batch: int = field(
        default=64, metadata={"help": "Turns generated together by the transformers engine."}
    )
    eval_temperature: float = field(default=0.0, metadata={"help": "Sampling temperature of evaluation."})
    save_traces: bool = field(
        default=True, metadata={"help": "Write every trajectory to <output_dir>/traces, for `mmsearch view`."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.log_multimodal:
            raise ValueError("log_multimodal must be false: pictures are written to <output_dir>/traces instead.")
        if self.mask_truncated_completions:
            raise ValueError(
                "mask_truncated_completions hides tokens from attention and breaks image positions; leave it false."
            )
        if not self.ds3_gather_for_generation:
            raise ValueError(
                "ds3_gather_for_generation must stay true: ranks roll out different numbers of turns, and with "
                "weights that are gathered layer by layer they would wait for each other for ever."
            )
        if self.use_vllm:
            raise ValueError("use_vllm: rollouts run on the transformers engine in this version; set it to false.")
        if self.top_p < 1.0 or self.top_k > 0 or self.min_p is not None or self.repetition_penalty != 1.0:
            raise ValueError(
                "top_p, top_k, min_p and repetition_penalty must stay at 1, 0, none and 1: sampling from another "
                "distribution than the trained one biases the policy ratio."
            )
