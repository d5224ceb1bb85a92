"""What every rank does together with the others: two real processes, and one alone."""

from pathlib import Path

import pytest
import torch
from forks import TWO, Forks

from mmsearch_trl.distributed.ranks import Ranks


def test_alone_each_call_is_plain() -> None:
    ranks = Ranks()
    assert (ranks.index, ranks.count, ranks.is_main) == (0, 1, True)
    assert ranks.sum([1.5, 2**53]) == [1.5, 2**53] and ranks.max(3.5) == 3.5
    assert ranks.any(True) and not ranks.any(False)
    assert ranks.gather(torch.tensor([1, 2])).tolist() == [1, 2] and ranks.gather_objects(["a"]) == ["a"]
    assert ranks.on_main(lambda: "done") == "done"


def test_an_error_of_the_main_rank_is_raised() -> None:
    def broken() -> None:
        raise FileNotFoundError("no such server")

    with pytest.raises(FileNotFoundError, match="no such server"):
        Ranks().on_main(broken)


@pytest.mark.slow
def test_two_processes_agree(forks: Forks, tmp_path: Path) -> None:
    worker = Path(__file__).parent / "ranks_worker.py"
    forks.launch(TWO, str(worker), str(tmp_path), folder=tmp_path)
    said = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert said[0].splitlines() == [
        "sum [3.0, 9007199254740992.0]",
        "max 2.0",
        "any True False",
        "gather [0, 0, 1, 1]",
        "objects ['rank 0', 'rank 1', 'again 1']",
        "main of rank 0",
        "error ValueError: of rank 0",
    ]
