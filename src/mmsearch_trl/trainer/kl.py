"""The KL term against the reference policy: its estimates, its bounds, and a coefficient that follows a target.

With d = log p_ref - log p of a sampled token, k1 is -d, k2 is d^2 / 2, and k3 is exp(d) - d - 1. TRL's loss computes
k3 of the log-probs of the reference that it is given; others in their place have it compute something else.

MMSearch-R1 and Search-R1 clamp d to +-20 and then k3 to +-10; outside, a token has the value of the bound and no
gradient. k3 is never negative and passes 10 long before d passes 20, at the two values below, so that clamping d to
these does both.
"""

import torch

from mmsearch_trl.trainer.estimator_config import KLConfig, KLForm


_K3_OF_TEN = (-10.999983298020256, 2.610868638149876)
"""Where k3 is 10; between them it is less."""
_NEWTON_STEPS = 8


def bounded_reference(reference: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """Log-probs in the place of the reference's, `(n, t)`, of which k3 is upstream's, in value and in gradient.

    Args:
        reference: Log-probs of the reference policy, `(n, t)`, natural log.
        log_probs: Of the trained policy, with their gradient.
    """
    # Outside of the bounds the gradients of the two terms of d = reference - log_probs cancel out.
    return log_probs + (reference - log_probs).clamp(*_K3_OF_TEN)


def reference_for_k2(reference: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """Log-probs in the place of the reference's, `(n, t)`, of which k3 is k2 of the true ones, likewise.

    They lie x from the policy's, where exp(x) - x - 1 is d^2 / 2 and x has the sign of d. Newton's steps begin where
    k3 is too large, and so come down to x from there.
    """
    difference = reference - log_probs
    d = difference.detach().double()
    k2 = d.square() / 2
    x = torch.where(d > 0, torch.minimum(d, (k2 + d.clamp(min=0)).log1p()), d - k2)
    for _ in range(_NEWTON_STEPS):
        slope = x.expm1()
        x = torch.where(slope == 0, x, x - (slope - x - k2) / slope)
    # The gradient of k3 is expm1(x) that of x, and that of k2 is d: x moves as their quotient, 1 where both are 0.
    ratio = torch.where(x == 0, torch.ones_like(x), d / x.expm1())
    moving = x.to(difference) + ratio.to(difference) * (difference - difference.detach())
    return log_probs + moving


def k3(reference: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """The estimate of each token, `(n, t)`."""
    difference = reference - log_probs
    return difference.exp() - difference - 1


def estimated_kl(form: KLForm, reference: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """An estimate of each token's KL, `(n, t)`."""
    if form == "k3":
        return k3(reference, log_probs)
    difference = log_probs - reference
    return difference if form == "k1" else difference.square() / 2


class KLController:
    """The coefficient of the KL term, which rises where the KL is above its target and falls where it is below.

    From one batch to the next it changes by the relative error, of at most 0.2, times the share of the horizon that
    the trajectories of the batch are (Ziegler et al., 2019).

    Attributes:
        coef: Of the current batch.
    """

    def __init__(self, config: KLConfig) -> None:
        self.coef = self._next = config.coef
        self._target = config.target
        self._horizon = config.horizon

    def begin(self) -> None:
        """Go on to the next batch."""
        self.coef = self._next

    def follow(self, kl: float, trajectories: int) -> None:
        """Take the mean KL of the current batch's tokens into account."""
        if self._target is not None:
            error = min(max(kl / self._target - 1, -0.2), 0.2)
            self._next = self.coef * (1 + error * trajectories / self._horizon)

    @property
    def state(self) -> tuple[float, float]:
        """What a checkpoint keeps."""
        return self.coef, self._next

    def restore(self, state: tuple[float, float]) -> None:
        self.coef, self._next = state
