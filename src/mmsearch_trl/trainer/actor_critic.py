"""A policy trained beside a critic: when the critic is asked, fitted, saved and resumed.

The critic is fitted at the end of the first optimizer step on a batch of rollouts, which is the only place where it
changes. A run that is ended between two steps has a critic and a policy of the same step, and a checkpoint holds both.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmsearch_trl.trainer.batch_position import BatchLayout, BatchPosition
from mmsearch_trl.trainer.critic import Critic, Valued
from mmsearch_trl.trainer.estimators import Estimate
from mmsearch_trl.trainer.log_probs import ScoredBatch
from mmsearch_trl.trainer.trimmed import TrimmedGRPOTrainer
from mmsearch_trl.trainer.value_model import value_model


class ActorCritic(TrimmedGRPOTrainer):
    """The training step with a critic, where `args.critic` asks for one; without it, the step alone."""

    critic: Critic | None = None
    _to_fit: list[tuple[str, Valued]]

    def build_critic(self) -> None:
        """Make the critic of the policy as it starts.

        Raises:
            UserError: policy and processes do not allow it.
        """
        args, config = self.args, self.args.critic
        self._to_fit = []
        if config is None:
            return
        kept: Any = args.gradient_checkpointing_kwargs or {}
        checkpointing = kept if args.gradient_checkpointing else None
        self.critic = Critic(
            value_model(self.model, config.model, seed=args.seed, checkpointing=checkpointing),
            config,
            self.accelerator,
            rows=args.per_device_train_batch_size,
            update=args.per_device_train_batch_size * args.gradient_accumulation_steps,
            seed=args.seed,
        )
        self.critic.updates(self._rows_of_batch)  # refuses what does not divide

    @property
    def _rows_of_batch(self) -> int:
        """Rollouts of a process in a batch."""
        return self.args.per_device_train_batch_size * int(self.args.steps_per_generation or 1)

    def values_of(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """What the critic expects before each sampled token of a generation batch, `(n, c)`."""
        assert self.critic is not None
        return self.critic.values(ScoredBatch.of_generated(batch, self.blank_picture(batch)))

    def learn_values(self, batch: Mapping[str, Any], estimate: Estimate) -> None:
        """Have the critic, where there is one, fitted to a generation batch at the end of the step."""
        if estimate.values is None:
            return
        scored = ScoredBatch.of_generated(batch, self.blank_picture(batch))
        given = Valued(batch=scored, values=estimate.values, returns=estimate.returns, mask=estimate.mask)
        self._to_fit.append((f"{self.state.global_step}/{len(self._to_fit)}", given))

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """As TRL's; in the first batches, the critic's alone, the policy has no gradient and is not changed.

        A loss of 0 would change it: weights decay, and momentum carries on.
        """
        batch = self._step // BatchLayout.of(self.args).generate_every
        if self.args.critic is None or batch >= self.args.critic.warmup_batches:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        self._prepare_inputs(inputs)
        self._step += 1
        return torch.zeros((), device=self.accelerator.device)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.critic is not None:
            each = BatchLayout.of(self.args)
            batches = -(-num_training_steps * each.gradient_accumulation_steps // each.generate_every)
            self.critic.schedule(batches * self.critic.updates(self._rows_of_batch))
        return super().create_scheduler(num_training_steps, optimizer)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Called at the end of each step."""
        for name, given in self._to_fit:
            assert self.critic is not None
            self.append_metrics(self.critic.fit(given, name))
        self._to_fit.clear()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.critic is not None:
            self.critic.save(Path(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if self.critic is not None and checkpoint is not None:
            self.critic.load(Path(checkpoint))

    def go_on_from(self, position: BatchPosition) -> None:
        super().go_on_from(position)
        self._to_fit.clear()  # of a batch that is rolled out again
