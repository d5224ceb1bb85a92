"""What one of two ranks sees of `Ranks` (`test_ranks.py`): each writes it to a file of its own."""

import sys
from pathlib import Path

import torch
from accelerate import PartialState

from mmsearch_trl.distributed.ranks import Ranks


def main(out: Path) -> None:
    PartialState(cpu=True)
    ranks = Ranks()
    lines = [f"sum {ranks.sum([ranks.index + 1.0, 2.0**52])}", f"max {ranks.max(float(ranks.index + 1))}"]
    lines.append(f"any {ranks.any(ranks.index == 1)} {ranks.any(False)}")
    lines.append(f"gather {ranks.gather(torch.tensor([ranks.index] * 2)).tolist()}")
    lines.append(f"objects {ranks.gather_objects([f'rank {ranks.index}', *['again 1'] * ranks.index])}")
    lines.append(f"main {ranks.on_main(lambda: f'of rank {ranks.index}')}")
    try:
        ranks.on_main(lambda: _broken(ranks.index))
    except ValueError as error:
        lines.append(f"error ValueError: {error}")
    (out / f"{ranks.index}.txt").write_text("\n".join(lines))
    ranks.leave()


def _broken(index: int) -> None:
    raise ValueError(f"of rank {index}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
