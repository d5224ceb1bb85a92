"""Intervals of shares."""

import math


_Z_95 = 1.959963984540054


def wilson_interval(p: float, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share `p` of `n` trials, within [0, 1]."""
    shrink = 1 + _Z_95**2 / n
    centre = (p + _Z_95**2 / (2 * n)) / shrink
    half = _Z_95 * math.sqrt(p * (1 - p) / n + _Z_95**2 / (4 * n**2)) / shrink
    return max(0.0, centre - half), min(1.0, centre + half)
