"""Advantages of sampled tokens: what TRL's loss weighs each of them by, `(n, t)`.

In this order, which is that of OpenRLHF and LMM-R1:

1. the baseline of its prompt's rollouts is taken off the reward of a trajectory;
2. the rest is clipped to `reward_clip`;
3. it is paid at the last sampled token, and every sampled token pays for its KL (`kl.place: reward`);
4. the return of a token is what is paid from it on, of which `gae` takes what a critic expected (`gae.py`);
5. these are normalised over all sampled tokens of the batch, those of other ranks included.

Only sampled tokens take part, as if they stood side by side: a return passes over the replies between turns. A
trajectory without a reward, which is NaN, is left out of baseline, KL and normalisation, and its advantages are 0. All
is computed in float64.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.trainer.advantages import group_advantages
from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.trainer.estimator_config import EPS_OF_LMM_R1, EstimatorConfig
from mmsearch_trl.trainer.gae import gae
from mmsearch_trl.trainer.kl import KLController, bounded_reference, estimated_kl


class Estimate(NamedTuple):
    """
    Attributes:
        advantages: `(n, t)`, float32, 0 on all but sampled tokens.
        returns: `(n, t)`, likewise: before they were normalised.
        of_trajectories: `(n,)`, the mean advantage of the tokens of each; 0 where it has none.
        metrics: For the log.
        values: Of a critic, `(n, t)`, where the estimator has one.
        mask: True on the sampled tokens of trajectories with a reward, `(n, t)`.
    """

    advantages: torch.Tensor
    returns: torch.Tensor
    of_trajectories: torch.Tensor
    metrics: dict[str, float]
    values: torch.Tensor | None
    mask: torch.Tensor


class Estimator:
    """Computes the advantages of generation batches; all ranks call it alike.

    Args:
        group_size: Trajectories of a prompt, which lie next to each other.
        eps: Added to the deviation of a group.
        kl_clamp: Bound each token's k3 by 10.
    """

    def __init__(self, config: EstimatorConfig, ranks: Ranks, *, group_size: int, eps: float, kl_clamp: bool) -> None:
        self.config = config
        self.kl = KLController(config.kl)
        self._ranks = ranks
        self._group_size = group_size
        self._eps = EPS_OF_LMM_R1 if config.compat == "lmm_r1" else eps
        self._kl_clamp = kl_clamp

    @property
    def loss_coef(self) -> float:
        """Coefficient of the KL term in the loss of the current batch."""
        return self.kl.coef if self.config.kl.place == "loss" else 0.0

    def __call__(
        self,
        rewards: torch.Tensor,
        batch: Mapping[str, Any],
        log_probs_of: Callable[[Any], torch.Tensor],
        values_of: Callable[[Any], torch.Tensor],
    ) -> Estimate:
        """
        Args:
            rewards: `(n,)`, of this rank's trajectories; NaN where there is none.
            batch: As TRL made it of these.
            log_probs_of: Gives the log-probs of its sampled tokens, `(n, t)`, where it holds none.
            values_of: Gives what a critic expects before each of them, `(n, t)`; asked by `gae` alone.
        """
        sampled = (batch["tool_mask"] * batch["completion_mask"]).bool()
        mask = sampled & ~rewards.isnan()[:, None].to(sampled.device)
        kl, metrics = self._kl(batch, mask, log_probs_of)
        paid = pay(self._shaped(rewards).to(mask.device), mask)
        if kl is not None and self.config.kl.place == "reward":
            paid = paid - self.kl.coef * kl
        values, returns = None, discounted(paid, mask, self.config.gamma)
        advantages = returns
        if self.config.name == "gae":
            values = values_of(batch)
            advantages, returns = gae(paid, values.double(), mask, gamma=self.config.gamma, lam=self.config.lam)
        advantages = self._normalized(advantages, mask)
        of_trajectories = advantages.sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return Estimate(advantages.float(), returns.float(), of_trajectories.float(), metrics, values, mask)

    def _shaped(self, rewards: torch.Tensor) -> torch.Tensor:
        """Rewards of this rank less their baselines, clipped, `(n,)`; 0 where there is none."""
        shaped = baselined(self._ranks.gather(rewards.double()), self._group_size, self.config.name, self._eps)
        if self.config.clip is not None:
            shaped = shaped.clamp(*self.config.clip)
        first = self._ranks.index * len(rewards)
        return shaped[first : first + len(rewards)]

    def _kl(
        self, batch: Mapping[str, Any], mask: torch.Tensor, log_probs_of: Callable[[Any], torch.Tensor]
    ) -> tuple[torch.Tensor | None, dict[str, float]]:
        """The KL of each sampled token, `(n, t)`, where anything here needs it, and what is logged of it."""
        config = self.config.kl
        self.kl.begin()
        if config.coef == 0 or (config.place == "loss" and config.target is None):
            return None, {}
        log_probs = batch.get("old_per_token_logps")
        log_probs = (log_probs_of(batch) if log_probs is None else log_probs).double()
        reference = batch["ref_per_token_logps"].double()
        if self._kl_clamp:
            reference = bounded_reference(reference, log_probs)
        kl = estimated_kl(config.form, reference, log_probs).masked_fill(~mask, 0.0)
        total, tokens, trajectories = self._ranks.sum([kl.sum().item(), mask.sum().item(), len(mask)])
        mean, metrics = total / max(tokens, 1), {"train/kl_coef": self.kl.coef}
        self.kl.follow(mean, int(trajectories))
        # TRL logs the KL of a term in the loss.
        return kl, metrics | ({"kl": mean} if config.place == "reward" else {})

    def _normalized(self, advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """With the mean 0 over all ranks' sampled tokens, and the deviation 1, where that is asked for."""
        if self.config.normalization == "none":
            return advantages
        total, count = self._ranks.sum([advantages.sum().item(), mask.sum().item()])
        centred = (advantages - total / max(count, 1)).masked_fill(~mask, 0.0)
        if self.config.normalization == "mean":
            return centred
        [squares] = self._ranks.sum([centred.square().sum().item()])
        return centred / max(squares / max(count, 1), 1e-8) ** 0.5


def build_estimator(args: MMSearchGRPOConfig, ranks: Ranks) -> Estimator | None:
    """The estimator of the arguments; None where advantages are TRL's."""
    if args.estimator is None:
        return None
    size, eps = int(args.num_generations or 1), args.advantage_eps
    return Estimator(args.estimator, ranks, group_size=size, eps=eps, kl_clamp=args.kl_clamp)


def baselined(rewards: torch.Tensor, group_size: int, name: str, eps: float) -> torch.Tensor:
    """Rewards less their baselines, `(n,)`, where `name` is that of the estimator; 0 where there is none.

    A trajectory that no other of its prompt can be compared with has the baseline of its own reward.

    Args:
        rewards: `(n,)`, float64, of all ranks.
    """
    if name == "group_norm":
        return group_advantages(rewards, group_size, "group", eps)
    if name in ("reinforce_baseline", "dr_grpo", "rloo"):
        centred = group_advantages(rewards, group_size, "none")
        if name != "rloo":
            return centred
        # Less the mean of the others is n / (n - 1) times less the mean of all.
        counts = (~rewards.isnan()).view(-1, group_size).sum(dim=1, keepdim=True)
        return (centred.view(-1, group_size) * counts / (counts - 1).clamp(min=1)).flatten()
    return rewards.nan_to_num(nan=0.0)


def pay(rewards: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Each reward `(n,)` at the last token of its trajectory's mask, `(n, t)`, 0 elsewhere."""
    from_here = mask.flip(1).cumsum(1).flip(1)
    return ((from_here == 1) & mask) * rewards[:, None]


def discounted(paid: torch.Tensor, mask: torch.Tensor, gamma: float) -> torch.Tensor:
    """What is paid from each token on, `(n, t)`, with a discount from one token of the mask to the next."""
    paid = paid.masked_fill(~mask, 0.0)
    if gamma == 1.0:
        return paid.flip(1).cumsum(1).flip(1).masked_fill(~mask, 0.0)
    returns, after = torch.zeros_like(paid), torch.zeros_like(paid[:, 0])
    for t in reversed(range(paid.shape[1])):
        after = torch.where(mask[:, t], paid[:, t] + gamma * after, after)
        returns[:, t] = after
    return returns.masked_fill(~mask, 0.0)
