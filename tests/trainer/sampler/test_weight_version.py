"""When the sampler's weights are not the policy's any more."""

from dataclasses import dataclass
from typing import Any

import pytest

from mmsearch_trl.trainer.sampler.weight_version import WeightVersion


@dataclass
class Weights:
    version: int = 0


class Others:
    """Ranks of which the others say whether theirs changed."""

    def __init__(self, *others: bool) -> None:
        self.others = others

    def any(self, flag: bool) -> bool:
        return flag or any(self.others)


def weights() -> Any:
    return Weights()


def version(*others: bool) -> WeightVersion:
    ranks: Any = Others(*others)
    return WeightVersion(ranks)


def test_what_was_never_sent_has_changed() -> None:
    sent, policy = version(), weights()
    assert sent.changed(policy) and sent.changed(policy) and sent.count == 0


def test_another_version_shows_until_the_weights_are_sent() -> None:
    sent, policy = version(), weights()
    for number in (1, 2):
        sent.sent(policy)
        assert not sent.changed(policy) and sent.count == 2 * number - 1
        policy.version += 1
        assert sent.changed(policy) and sent.changed(policy)
        sent.sent(policy)
        assert not sent.changed(policy) and sent.count == 2 * number


@pytest.mark.parametrize("others", [(True, False), (False, True)])
def test_a_change_on_one_rank_is_every_ranks(others: tuple[bool, ...]) -> None:
    sent, policy = version(*others), weights()
    sent.sent(policy)
    assert sent.changed(policy)


def test_nothing_changes_while_no_rank_writes() -> None:
    sent, policy = version(False, False), weights()
    sent.sent(policy)
    assert not sent.changed(policy)


def test_another_reason_counts_as_a_change() -> None:
    sent, policy = version(False), weights()
    sent.sent(policy)
    assert sent.changed(policy, also=True) and not sent.changed(policy)
