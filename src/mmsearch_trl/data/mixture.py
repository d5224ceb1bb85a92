"""Several sets of training rows as one, in given shares.

Rows are drawn set by set until each row of every set was drawn; a set that is through begins again. What is drawn
depends on the shares, the seed and the numbers of rows alone, so that a run that is resumed draws the same.
"""

from collections.abc import Sequence

import datasets

from mmsearch_trl.core.errors import UserError


_MOST_ROWS = 30_000_000


def mixed(parts: Sequence[datasets.Dataset], shares: Sequence[float], seed: int) -> datasets.Dataset:
    """The parts interleaved by their shares, which need not sum up to 1.

    Raises:
        UserError: a set is so large for its share that the others would have to be repeated without end.
    """
    total = sum(shares)
    probabilities = [share / total for share in shares]
    needed = max(len(part) / probability for part, probability in zip(parts, probabilities, strict=True))
    if needed > _MOST_ROWS:
        raise UserError(
            f"mixture: to show each row once, {needed:,.0f} rows would have to be drawn; raise the smallest share, "
            "or bound the sets by max_samples_per_file"
        )
    return datasets.interleave_datasets(
        list(parts), probabilities=probabilities, seed=seed, stopping_strategy="all_exhausted"
    )


def mixed_length(lengths: Sequence[int], shares: Sequence[float], seed: int) -> int:
    """How many rows `mixed` gives of parts with so many."""
    parts = [datasets.Dataset.from_dict({"row": range(length)}) for length in lengths]
    return len(mixed(parts, shares, seed))
