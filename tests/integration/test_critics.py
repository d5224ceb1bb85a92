"""A critic that two processes share, copied or sharded, learns what one process alone does."""

from pathlib import Path

import pytest
import torch
from forks import TWO, Forks
from integration import critic_worker


pytestmark = pytest.mark.slow


def test_two_processes_fit_a_critic_as_one_does(forks: Forks, tmp_path: Path) -> None:
    critic_worker.main(tmp_path, ("alone",))
    forks.launch(TWO, critic_worker.__file__, str(tmp_path), folder=tmp_path)
    alone, copied, sharded = (torch.load(tmp_path / f"{way}.pt") for way in ("alone", "copied", "sharded"))
    assert alone["kinds"] == copied["kinds"] == {"Tensor"} and sharded["kinds"] == {"DTensor"}
    for way in (copied, sharded):
        for one, two in zip(alone["metrics"], way["metrics"], strict=True):
            assert two == pytest.approx(one, rel=1e-4)
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(way["weights"][name], weight, atol=2e-5, rtol=1e-4, msg=name)
