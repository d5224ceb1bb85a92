"""Where a turn ends that a text ends, at the grain of its tokens."""

from collections.abc import Callable, Collection, Sequence


Decode = Callable[[Sequence[int]], str]


def end_of_stop(token_ids: Sequence[int], stops: Collection[str], decode: Decode) -> int | None:
    """How many tokens there are up to the one that completes the first of `stops`; None where there is none.

    The last token may reach beyond the stop, as `>\\n` does: a sampled token is never taken apart.
    """

    def complete(count: int) -> bool:
        text = decode(token_ids[:count])
        return any(stop in text for stop in stops)

    if not complete(len(token_ids)):
        return None
    low, high = 0, len(token_ids)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if complete(middle) else (middle, high)
    return high
