"""Rows of several sets in given shares: seeded, and every row seen."""

from collections import Counter

import datasets
import pytest

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.config import DataConfig
from mmsearch_trl.data.mixture import mixed, mixed_length


def sets(*lengths: int) -> list[datasets.Dataset]:
    return [
        datasets.Dataset.from_dict({"set": [number] * length, "row": range(length)})
        for number, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("shares", [(0.1, 0.4, 0.5), (1, 4, 5), (0.98, 0.01, 0.01)])
def test_shares_are_kept_and_every_row_is_seen(shares: tuple[float, ...]) -> None:
    rows = mixed(sets(1000, 90, 70), shares, seed=1)
    drawn = Counter(rows["set"][:])
    assert len(rows) == mixed_length((1000, 90, 70), shares, seed=1)
    for number, share in enumerate(shares):
        assert drawn[number] / len(rows) == pytest.approx(share / sum(shares), abs=0.02)
    assert len(set(zip(rows["set"][:], rows["row"][:], strict=True))) == 1160


def test_ten_thousand_draws_come_within_two_percent() -> None:
    drawn = Counter(mixed(sets(2000, 20, 100), (0.2, 0.3, 0.5), seed=7)["set"][:10_000])
    assert {number: round(count / 10_000, 3) for number, count in drawn.items()} == pytest.approx(
        {0: 0.2, 1: 0.3, 2: 0.5}, abs=0.02
    )


def test_the_order_is_the_seeds_alone() -> None:
    one, again, other = (mixed(sets(50, 60), (0.5, 0.5), seed=seed).to_dict() for seed in (3, 3, 4))
    assert one == again
    assert one != other


def test_a_set_too_large_for_its_share_is_refused() -> None:
    with pytest.raises(UserError, match=r"mixture: to show each row once, 100,000,\d+ rows would have to be drawn"):
        mixed(sets(100, 100), (1e-6, 1), seed=0)


@pytest.mark.parametrize(
    ("shares", "reason"),
    [
        ([0.5], "mixture holds 1 shares, and train_files 2 sets"),
        ([0.5, 0.3, 0.2], "mixture holds 3 shares, and train_files 2 sets"),
        ([], "mixture holds 0 shares"),
        ([1.0, 0.0], "a share is a number over 0, got 0"),
        ([1.0, -0.5], "a share is a number over 0, got -0.5"),
        ([float("nan"), 1.0], "got nan"),
        ([float("inf"), 1.0], "got inf"),
    ],
)
def test_wrong_shares_are_refused_before_anything_is_read(shares: list[float], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        DataConfig(train_files=["a.jsonl", "b.jsonl"], mixture=shares)
