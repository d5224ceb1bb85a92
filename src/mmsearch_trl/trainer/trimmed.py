"""TRL's training step on sampled tokens alone, forwarding as little as can be: it knows nothing of searches.

* `_prepare_inputs` deals the rows of each optimizer step to micro-batches by length (`micro_batches.py`).
* `_get_per_token_logps_and_entropies` forwards only what is needed (`log_probs.py`).
* `_compute_loss` says which tokens are scored, and has MMSearch-R1's own loss (`trajectory_loss.py`) and bounds of the
  KL term (`kl.py`).
* `log` joins shares of several batches by what they are shares of.
* `create_scheduler` has its learning rate (`schedules.py`).
* `_get_train_sampler` orders each epoch by its number, so that a resumed run goes on with the data (`samplers.py`).
* `_save_rng_state` and `_load_rng_state` keep where training stands in a generation batch (`batch_position.py`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from trl import GRPOTrainer

from mmsearch_trl.core.ratio import Ratio
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.trainer.advantages import RewardScale
from mmsearch_trl.trainer.batch_position import BatchLayout, BatchPosition
from mmsearch_trl.trainer.blank_picture import BlankPicture
from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.trainer.estimators import Estimator
from mmsearch_trl.trainer.kl import bounded_reference, reference_for_k2
from mmsearch_trl.trainer.log_probs import VISION_INPUTS, ScoredBatch, score_tokens
from mmsearch_trl.trainer.micro_batches import deal_by_length, forwarded_per_token
from mmsearch_trl.trainer.sampler_agreement import check_agreement
from mmsearch_trl.trainer.samplers import EpochSampler
from mmsearch_trl.trainer.schedules import sigmoid_decay
from mmsearch_trl.trainer.surplus import Surplus
from mmsearch_trl.trainer.trajectory_loss import trajectory_loss
from mmsearch_trl.trainer.vision_ranks import VisionOnAllRanks


class TrimmedGRPOTrainer(GRPOTrainer):
    """`trl.GRPOTrainer` whose loss forwards the tokens that count and no padding that can be left out."""

    # What TRL and transformers declare more loosely than it is here.
    args: MMSearchGRPOConfig
    model: Any
    model_wrapped: Any
    accelerator: Any
    optimizer: Any
    processing_class: Any
    train_dataset: Any
    num_generations: int
    beta: float
    pad_to_multiple_of: int | None
    reward_processing_classes: Any
    chat_template_kwargs: Any
    scale_rewards: RewardScale
    _buffered_inputs: Any
    aux_loss_enabled: bool
    use_vllm: bool

    surplus: Surplus
    """Rollouts that wait for the next batch."""

    estimator: Estimator | None = None
    """What makes advantages of rewards in the place of TRL."""

    _score_mask: torch.Tensor | None = None
    """1 on the tokens whose log-probs are wanted, `(b, c)`, while TRL asks for them; None: all that are attended."""

    _vision: VisionOnAllRanks | None = None
    """Which forward passes need a picture; None: those that have one."""

    _compared = False
    """Whether vLLM's log-probs were compared with the trainer's."""

    _loss_inputs: dict[str, Any] | None = None
    """What TRL's loss goes on to read, while it asks for log-probs."""

    def append_metrics(self, metrics: dict[str, float]) -> None:
        mode = "train" if self.model.training else "eval"
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As TRL's, which takes the mean over batches; of shares, it is that of all batches together."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, values in metrics.items():
            if values and all(isinstance(value, Ratio) for value in values):
                metrics[name] = [Ratio.joined(values)]
        super().log(logs, start_time)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is before:
            return inputs
        self._buffered_inputs = deal_by_length(self._buffered_inputs, self.args)
        self.append_metrics({"train/forwarded_per_token": forwarded_per_token(self._buffered_inputs)})
        return self._buffered_inputs[self._step % len(self._buffered_inputs)]

    def blank_picture(self, inputs: Mapping[str, Any]) -> BlankPicture | None:
        """What stands in where one of the processes has no picture; all must ask together."""
        return self._vision.blank(inputs.get("pixel_values") is not None) if self._vision is not None else None

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **inputs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """As TRL's, on trimmed micro-batches; `(b, c)` each, 0 on tokens that are not scored."""
        score_mask = attention_mask[:, -logits_to_keep:] if self._score_mask is None else self._score_mask
        batch = ScoredBatch.of(input_ids, attention_mask, score_mask, inputs, self.blank_picture(inputs))
        with self.accelerator.autocast():
            log_probs, entropies = score_tokens(
                model, batch, chunk=batch_size or len(input_ids), entropy=compute_entropy
            )
        if self._loss_inputs is not None and self.beta != 0.0:
            reference = self._loss_inputs["ref_per_token_logps"]
            if self.args.kl_clamp:
                reference = bounded_reference(reference, log_probs)
            if self.estimator is not None and self.estimator.config.kl.form == "k2":
                reference = reference_for_k2(reference, log_probs)
            self._loss_inputs["ref_per_token_logps"] = reference
        return log_probs, entropies, None

    def check_sampler(self, batch: dict[str, Any], carried: int, ranks: Ranks) -> None:
        """Where TRL does not compare vLLM with the trainer in every generation batch, that is done in the first.

        Args:
            carried: First rows, which other weights sampled.
        """
        trained = batch.get("old_per_token_logps")
        if not self.use_vllm or (trained is None and self._compared):
            return
        self._compared = True
        mask = batch["tool_mask"] * batch["completion_mask"]
        mask[:carried] = 0
        check_agreement(
            batch["sampling_per_token_logps"],
            self.log_probs_of(batch) if trained is None else trained,
            mask,
            ranks,
            most=self.args.max_sampler_difference,
            model=str(self.model.config._name_or_path),
        )

    @torch.no_grad()
    def log_probs_of(self, batch: dict[str, Any]) -> torch.Tensor:
        """Log-probs of the sampled tokens of a generation batch, `(n, c)`."""
        vision: dict[str, Any] = {name: batch.get(name) for name in VISION_INPUTS}
        self._score_mask = batch["tool_mask"] * batch["completion_mask"]
        try:
            log_probs, _, _ = self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                batch["completion_ids"].shape[1],
                batch_size=self.args.per_device_train_batch_size,
                **vision,
            )
        finally:
            self._score_mask = None
        return log_probs

    def keep_sampling_log_probs(self, batch: dict[str, Any], carried: int, ranks: Ranks) -> None:
        """Have the first rows of a batch compared with the policy that sampled them, where it is not that of now.

        TRL takes the log-probs of now for them; with a correction for vLLM, it weighs by what lies between.

        Args:
            carried: How many rows that are, of this rank.
        """
        if not ranks.any(carried > 0) or (self.use_vllm and self.args.vllm_importance_sampling_correction):
            return
        now = batch.get("old_per_token_logps")
        now = self.log_probs_of(batch) if now is None else now
        then = batch["sampling_per_token_logps"][:carried].to(now)
        then = torch.where(then.isnan(), now[:carried], then)
        batch["old_per_token_logps"] = torch.cat([then, now[carried:]])

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._score_mask = inputs["tool_mask"] * inputs["completion_mask"]
        beta = self.beta
        if self.estimator is not None:  # which spends the KL term, or says what it weighs in the loss
            self.beta = self.estimator.loss_coef
        try:
            if not self.args.trajectory_level_loss:
                self._loss_inputs = dict(inputs)
                return super()._compute_loss(model, self._loss_inputs)
            log_probs, entropies, _ = self._get_per_token_logps_and_entropies(
                model,
                torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
                torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
                inputs["completion_ids"].shape[1],
                compute_entropy=True,
                **{name: inputs.get(name) for name in VISION_INPUTS},
            )
        finally:
            self.beta, self._score_mask, self._loss_inputs = beta, None, None
        assert entropies is not None
        loss, metrics = trajectory_loss(log_probs, entropies, inputs, self.args)
        self.append_metrics(metrics)
        return loss / (self.current_gradient_accumulation_steps if self.model.training else 1)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        ratio, step = self.args.lr_sigmoid_ratio, self.args.lr_sigmoid_step
        if ratio is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = sigmoid_decay(optimizer or self.optimizer, ratio, step)
        return self.lr_scheduler

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        plain: Any = super()._get_train_sampler(dataset)
        return EpochSampler(plain, epoch=lambda: int((self.state.epoch or 0) + 1e-6))

    def _save_rng_state(self, output_dir: str) -> None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)  # rank 0 may not have been here yet
        self.batch_position().save(Path(output_dir), self.args.process_index, BatchLayout.of(self.args))
        super()._save_rng_state(output_dir)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        args, layout = self.args, BatchLayout.of(self.args)
        step, device = self.state.global_step, self.accelerator.device
        self.go_on_from(BatchPosition.load(Path(checkpoint), args.process_index, layout, step, device))

    def batch_position(self) -> BatchPosition:
        kl = None if self.estimator is None else self.estimator.kl.state
        layout, surplus = BatchLayout.of(self.args), self.surplus.groups
        return BatchPosition.at(self._step, self._buffered_inputs, layout, kl, surplus)

    def go_on_from(self, position: BatchPosition) -> None:
        self._step, self._buffered_inputs = position.micro_step, position.micro_batches
        self.surplus.groups = position.surplus
        if self.estimator is not None and position.kl is not None:
            self.estimator.kl.restore(position.kl)
