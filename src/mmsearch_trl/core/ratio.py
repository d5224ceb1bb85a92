"""A mean that knows what it is a mean over, so that several can be joined to the mean of all."""

from collections.abc import Iterable


class Ratio(float):
    """A total by a count; 0 where there is nothing to count.

    A share of some of the rows of a batch, such as the right ones of those that searched, has another count in every
    batch: the mean of the shares is not the share.
    """

    total: float
    count: float

    def __new__(cls, total: float, count: float) -> "Ratio":
        ratio = super().__new__(cls, total / count if count else 0.0)
        ratio.total, ratio.count = total, count
        return ratio

    @classmethod
    def joined(cls, ratios: Iterable["Ratio"]) -> "Ratio":
        given = list(ratios)
        return cls(sum(ratio.total for ratio in given), sum(ratio.count for ratio in given))
