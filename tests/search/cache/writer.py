"""A process that writes to a store until it is killed; see `test_store.py`."""

import itertools
from pathlib import Path

from mmsearch_trl.core.observation import TextHit
from mmsearch_trl.search.cache.store import ResultStore


def write_and_tell(path: Path, log: Path, worker: int) -> None:
    """Put entries until killed; a key is told when its entry is in the store."""
    store = ResultStore(path)
    with log.open("w", buffering=1) as file:
        for number in itertools.count():
            key = f"{number}-{worker if number % 3 else 'all'}"
            store.put(key, (TextHit(key, key * 100),))
            file.write(key + "\n")
