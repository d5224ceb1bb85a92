"""The KL term against the reference policy, bounded as MMSearch-R1 and Search-R1 bound it.

With d = log p_ref - log p, the k3 estimate is exp(d) - d - 1. Upstream clamps d to +-20 and then the estimate to +-10;
outside, a token has the value of the bound and no gradient. k3 is never negative and passes 10 long before d passes
20, at the two values below, so that clamping d to these does both.
"""

import torch


_K3_OF_TEN = (-10.999983298020256, 2.610868638149876)
"""Where k3 is 10; between them it is less."""


def bounded_reference(reference: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """Log-probs in the place of the reference's, `(n, t)`, of which k3 is upstream's, in value and in gradient.

    Args:
        reference: Log-probs of the reference policy, `(n, t)`, natural log.
        log_probs: Of the trained policy, with their gradient.
    """
    # Outside of the bounds the gradients of the two terms of d = reference - log_probs cancel out.
    return log_probs + (reference - log_probs).clamp(*_K3_OF_TEN)


def k3(reference: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """The estimate of each token, `(n, t)`."""
    difference = reference - log_probs
    return difference.exp() - difference - 1
