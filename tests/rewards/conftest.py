from collections.abc import Iterator

import pytest

from mmsearch_trl.rewards.verify_pool import VerifyPool


@pytest.fixture(scope="session")
def pool() -> Iterator[VerifyPool]:
    """One process, kept for the session."""
    made = VerifyPool(seconds=20, processes=1)
    yield made
    made.close()
