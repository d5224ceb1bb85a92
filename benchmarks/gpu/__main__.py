"""Log-probs and training steps of a Qwen2.5-VL-3B with random weights, on one GPU.

    PYTHONPATH=src python -m benchmarks.gpu [--out FILE] [--tiny]

`--tiny` runs everything in miniature on a processor. The table is printed, and written with machine and versions to
`--out`: by default `$OUT/gpu.json`, or `runs/bench/gpu.json` where OUT is not set. It is written after every row, so
that a run that is cut short keeps what it measured.
"""

import argparse
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.model import three_billion, tiny
from benchmarks.gpu.oracle import oracle
from benchmarks.gpu.report import machine, table, write
from benchmarks.gpu.throughput import Plan, throughput


COLUMNS = (
    *("what", "setting", "forwarded/real", "seconds per step", "min to max", "real tokens/s", "needed TFLOP"),
    *("of bf16 peak", "peak GiB", "max Δ log-prob", "mean Δ log-prob", "verdict", "note"),
)
TINY = Plan(rows=4, micro=2, repeats=1, scale=0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/bench")) / "gpu.json")
    parser.add_argument("--tiny", action="store_true", help="a miniature of everything, without a GPU")
    parser.add_argument("--repeats", type=int, default=Plan.repeats)
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU; --tiny runs the script without one")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    report: dict[str, Any] = {"machine": machine(), "tiny": options.tiny, "rows": []}
    for row in _rows(options):
        report["rows"].append(row)
        write(report, options.out)
        print(row, flush=True)
    print("\n".join(["", *table(COLUMNS, report["rows"])]))


def _rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    if options.tiny:
        config, device, plan, scale = tiny(), torch.device("cpu"), TINY, 0.1
    else:
        config, device, plan, scale = three_billion(), torch.device("cuda"), Plan(repeats=options.repeats), 1.0
    yield {"what": "LM head", "setting": "TRL's" if importlib.util.find_spec("trl") else "plain PyTorch, in chunks"}
    yield from oracle(config, device, scale=scale)
    yield from throughput(config, device, plan)
    yield {"what": "vLLM", "note": "not measured by this script"}


if __name__ == "__main__":
    main()
