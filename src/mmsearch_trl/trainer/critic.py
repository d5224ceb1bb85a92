"""The critic of PPO: a value model beside the policy, with an optimizer and a schedule of its own.

In each batch of rollouts its values are taken first, without a gradient; returns and advantages are made of them
(`gae.py`); then it is fitted to the returns. The policy is trained with advantages that rest on the values before the
fit, and so it does not matter which of the two is updated first: LMM-R1 fits the critic before the policy, and here it
is done at the end of the first update, so that a checkpoint holds both or neither (`actor_critic.py`).

All processes call everything here together, and equally often.
"""

import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed.tensor import DTensor
from transformers import get_scheduler

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.ratio import Ratio
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.trainer.critic_checkpoint import load_critic, save_critic
from mmsearch_trl.trainer.critic_config import CriticConfig
from mmsearch_trl.trainer.log_probs import ScoredBatch, put_back
from mmsearch_trl.trainer.value_model import ValueModel, seeded


@dataclass(frozen=True, slots=True, kw_only=True)
class Valued:
    """A batch of rollouts of one process, with what the critic is to learn of it.

    Attributes:
        values: Before each completion token, `(n, c)`, before the critic was fitted to this batch.
        returns: What they ought to have been, `(n, c)`.
        mask: 1 on the tokens that count, `(n, c)`.
    """

    batch: ScoredBatch
    values: torch.Tensor
    returns: torch.Tensor
    mask: torch.Tensor


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip: float | None
) -> torch.Tensor:
    """Half the squared error of each value, and no less than that of a value within `clip` of the old one."""
    error = (values - returns).square()
    if clip is not None:
        error = error.maximum((values.clamp(old_values - clip, old_values + clip) - returns).square())
    return 0.5 * error


class Critic:
    """Says what a policy's tokens are worth, and learns it.

    Args:
        model: Of every process, not wrapped yet.
        rows: Rollouts of a process forwarded together.
        update: Rollouts of a process in one of the policy's updates.
        seed: Of the order of rollouts and of dropout.

    Raises:
        UserError: processes share the model in a way that only serves one, or a batch size does not divide.
    """

    def __init__(
        self, model: ValueModel, config: CriticConfig, accelerator: Accelerator, *, rows: int, update: int, seed: int
    ) -> None:
        self._config = config
        self._accelerator = accelerator
        self._ranks = Ranks()
        self._rows = rows
        self._update_rows = update
        if config.batch_size is not None:
            self._update_rows, rest = divmod(config.batch_size, self._ranks.count)
            if rest:
                raise UserError(
                    f"critic.batch_size: {self._ranks.count} processes do not divide {config.batch_size} rollouts"
                )
        self._seed = seed
        self._model = _wrapped(model, accelerator)
        inner = accelerator.unwrap_model(self._model)
        self._trained = {name: p for name, p in inner.named_parameters() if p.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self._trained.values(),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.weight_decay,
        )
        self._schedule: torch.optim.lr_scheduler.LRScheduler | None = None
        self._sharded = any(isinstance(parameter, DTensor) for parameter in self._trained.values())

    def updates(self, rows: int) -> int:
        """Updates on a batch of which each process holds `rows`.

        Raises:
            UserError: `critic.batch_size` does not divide the batch.
        """
        size = self._size(rows)
        if rows % size:
            raise UserError(
                f"critic.batch_size: {size * self._ranks.count} does not divide a batch of "
                f"{rows * self._ranks.count} rollouts"
            )
        return self._config.epochs * (rows // size)

    def _size(self, rows: int) -> int:
        """Rollouts of a process in an update, of a batch of which it holds `rows`."""
        return min(self._update_rows, rows) if self._config.batch_size is None else self._update_rows

    def schedule(self, updates: int) -> None:
        """Set the course of the learning rate, over all updates of a run; once.

        Raises:
            UserError: there is no such schedule, or not with these arguments.
        """
        if self._schedule is None:
            self._schedule = build_schedule(self._optimizer, self._config, updates)

    @torch.no_grad()
    def values(self, batch: ScoredBatch) -> torch.Tensor:
        """Of every scored token, `(n, c)`: what was expected before it was sampled; 0 elsewhere."""
        self._model.eval()
        found = torch.zeros(batch.score_mask.shape, device=batch.score_mask.device)
        for chunk in batch.chunks(self._rows):
            found[chunk.rows] = self._forward(chunk.inputs, chunk.columns, batch)
        return found * batch.score_mask

    def fit(self, given: Valued, name: str) -> dict[str, float]:
        """Learn the returns of a batch; what is logged of it.

        Args:
            name: Of the batch: with the seed, it decides all that chance does here.
        """
        assert self._schedule is not None
        self._model.train()
        rng, rows = random.Random(f"{self._seed}/{name}"), range(len(given.mask))
        size = self._size(len(rows))
        losses, norms = [], []
        with seeded(rng.randrange(2**63), self._accelerator.device):  # of dropout, in adapters
            for _ in range(self._config.epochs):
                order = rng.sample(rows, len(rows))
                for start in range(0, len(rows), size):
                    loss, norm = self._update(given, order[start : start + size])
                    losses.append(loss)
                    norms.append(norm)
        return {
            "critic/loss": Ratio(sum(loss.total for loss in losses), sum(loss.count for loss in losses)),
            "critic/grad_norm": sum(norms) / len(norms),
            "critic/learning_rate": float(self._schedule.get_last_lr()[0]),
            **self._described(given),
        }

    def save(self, checkpoint: Path) -> None:
        """Write weights, optimizer and schedule to a checkpoint's folder.

        Raises:
            UserError: the folder cannot be written.
        """
        save_critic(self._state(), checkpoint, sharded=self._sharded, is_main=self._ranks.is_main)

    def load(self, checkpoint: Path) -> None:
        """Go on from what `save` wrote.

        Raises:
            UserError: there is nothing of that, or it is of another model.
        """
        state = self._state()
        load_critic(state, checkpoint, sharded=self._sharded)
        assert self._schedule is not None
        self._schedule.load_state_dict(state["schedule"])
        for group, rate in zip(self._optimizer.param_groups, self._schedule.get_last_lr(), strict=True):
            group["lr"] = rate

    def _update(self, given: Valued, rows: Sequence[int]) -> tuple[Ratio, float]:
        """One step of the optimizer, on these rows: the loss before it over all processes, and the gradient's norm."""
        tokens = self._ranks.sum([float(given.mask[list(rows)].sum())])[0]
        chunks = list(given.batch.chunks(self._rows, rows))
        total = 0.0
        for number, chunk in enumerate(chunks, start=1):
            mask = given.mask[chunk.rows]
            # Gradients of processes are averaged, with the last one alone; the loss is a mean over all their tokens.
            last = number == len(chunks)
            with nullcontext() if last else self._accelerator.no_sync(self._model):
                values = self._forward(chunk.inputs, chunk.columns, given.batch)
                losses = value_loss(
                    values, given.values[chunk.rows], given.returns[chunk.rows], self._config.value_clip
                )
                loss = (losses * mask).sum()
                (loss * self._ranks.count / max(tokens, 1.0)).backward()
            total += float(loss.detach())
        parameters = list(self._trained.values())
        most = self._config.max_grad_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(parameters, most)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self._optimizer.step()
        assert self._schedule is not None
        self._schedule.step()
        self._optimizer.zero_grad()
        return Ratio(self._ranks.sum([total])[0], tokens), float(norm)

    def _forward(self, inputs: Mapping[str, Any], columns: torch.Tensor, batch: ScoredBatch) -> torch.Tensor:
        """Values before the completion tokens of a chunk, `(k, c)`."""
        taken = {name: value for name, value in inputs.items() if name != "labels"}
        with self._accelerator.autocast():
            values = self._model(**taken)
        return put_back(values[:, :-1, 0], columns, batch)

    def _described(self, given: Valued) -> dict[str, float]:
        """Means over all tokens, and which share of the returns' variance the values had explained."""
        mask = given.mask.bool()
        values, returns = given.values[mask].double(), given.returns[mask].double()
        errors = returns - values
        sums = [each.sum() for each in (values, returns, returns.square(), errors, errors.square())]
        value, total, squares, error, error_squares, count = self._ranks.sum([*map(float, sums), float(mask.sum())])
        if not count:
            return {}
        metrics: dict[str, float] = {"critic/value": Ratio(value, count), "critic/return": Ratio(total, count)}
        variance = squares / count - (total / count) ** 2
        if variance > 1e-12:
            unexplained = error_squares / count - (error / count) ** 2
            metrics["critic/explained_variance"] = 1 - unexplained / variance
        return metrics

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds, as tensors that it can be read into."""
        assert self._schedule is not None
        for parameter in self._trained.values():
            if parameter not in self._optimizer.state:  # as AdamW begins with
                zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self._optimizer.state[parameter] = {"step": torch.tensor(0.0), **zeros}
        return {
            "weights": {name: parameter.detach() for name, parameter in self._trained.items()},
            "optimizer": {name: dict(self._optimizer.state[parameter]) for name, parameter in self._trained.items()},
            "schedule": self._schedule.state_dict(),
        }


def build_schedule(
    optimizer: torch.optim.Optimizer, config: CriticConfig, updates: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """
    Raises:
        UserError: there is no such schedule, or not with these arguments.
    """
    warmup = config.warmup_steps * updates if config.warmup_steps < 1 else config.warmup_steps
    try:
        schedule = get_scheduler(
            config.lr_scheduler_type,
            optimizer,
            num_warmup_steps=round(warmup),
            num_training_steps=updates,
            scheduler_specific_kwargs=dict(config.scheduler_arguments),
        )
    except (ValueError, TypeError, KeyError) as error:
        why = " ".join(str(error).split())[:300]
        raise UserError(
            f"critic.lr_scheduler_type: {config.lr_scheduler_type} with lr_scheduler_kwargs "
            f"{dict(config.scheduler_arguments)}: {why}"
        ) from error
    if not isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
        raise UserError(
            f"critic.lr_scheduler_type: {config.lr_scheduler_type} follows a metric, and a critic has none: name a "
            "schedule over steps, such as constant_with_warmup"
        )
    return schedule


def _wrapped(model: ValueModel, accelerator: Accelerator) -> Any:
    """The model as the processes share it; parameters of FSDP2 are sharded in place."""
    if accelerator.distributed_type is not DistributedType.FSDP:
        return accelerator.prepare_model(model)
    if not accelerator.is_fsdp2:
        raise UserError("critic: FSDP1 is not supported: set fsdp_version: 2 (accelerate_configs/fsdp2.yaml)")
    if not all(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            "critic.model: adapter shares the policy's frozen weights, which FSDP shards: set it to full, or use DDP"
        )
    return fsdp2_prepare_model(accelerator, model)
