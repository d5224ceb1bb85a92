"""Generalized advantage estimation over sampled tokens alone (Schulman et al. 2015, arXiv 1506.02438).

A token's successor is the next token that the policy sampled, however long the reply between them: values of replies
are never read, and no discount is taken for them. Upstream's LMM-R1 takes the next token of the row, whatever it is;
with one turn the two are the same.
"""

from typing import NamedTuple

import torch


class Estimates(NamedTuple):
    """Of each token, `(n, t)`; 0 on what was not sampled.

    Attributes:
        advantages: How much better the token did than the value before it had it.
        returns: What that value ought to have been: the advantage and the value together.
    """

    advantages: torch.Tensor
    returns: torch.Tensor


def gae(rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, *, gamma: float, lam: float) -> Estimates:
    """Advantages and returns in the dtype of `values`; sums run in float64.

    Args:
        rewards: Of each token, `(n, t)`.
        values: What was expected before each token, `(n, t)`.
        mask: 1 on sampled tokens, `(n, t)`.
        gamma: Discount of a reward per sampled token between.
        lam: 1 for the whole return less the value, 0 for one step's surprise.
    """
    places = mask.argsort(dim=1, descending=True, stable=True)  # of sampled tokens first, in their order
    sampled = mask.gather(1, places).bool()
    width = int(sampled.sum(dim=1).max()) if mask.numel() else 0
    places, sampled = places[:, :width], sampled[:, :width]
    reward, value = (each.gather(1, places).double().masked_fill(~sampled, 0.0) for each in (rewards, values))
    following = torch.cat([value[:, 1:], value.new_zeros(len(value), 1)], dim=1)[:, :width]
    surprises = reward + gamma * following - value
    advantages = torch.zeros_like(surprises)
    running = surprises.new_zeros(len(surprises))
    for place in reversed(range(width)):
        running = surprises[:, place] + gamma * lam * running
        advantages[:, place] = running
    blank = values.new_zeros(values.shape)
    found = (estimate.masked_fill(~sampled, 0.0).to(values) for estimate in (advantages, advantages + value))
    return Estimates(*(blank.scatter(1, places, estimate) for estimate in found))
