"""Log-probs and training steps of a Qwen2.5-VL-3B with random weights, on one GPU.

    PYTHONPATH=src python -m benchmarks.gpu [--out FILE] [--tiny]

`--tiny` runs everything in miniature on a processor. The table is printed, and written with machine and versions to
`--out`: by default `$OUT/gpu.json`, or `runs/bench/gpu.json` where OUT is not set. It is written after every row, so
that a run that is cut short keeps what it measured; what fails is a row too, and the exit status is 1.
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
from benchmarks.gpu.report import failure, machine, table, write
from benchmarks.gpu.sampler import Load, sampler
from benchmarks.gpu.throughput import Plan, throughput
from transformers.utils import is_flash_attn_2_available, is_flash_attn_4_available

from mmsearch_trl.models.vision_attention import ALL_WINDOWS


COLUMNS = (
    *("what", "setting", "forwarded/real", "seconds per step", "min to max", "real tokens/s", "needed TFLOP"),
    *("of bf16 peak", "peak GiB", "max Δ log-prob", "mean Δ log-prob", "verdict", "note"),
)
TINY = Plan(rows=8, micro=2, repeats=1, scale=0.05)
TINY_LOAD = Load(turns=8, tokens=16, text=20, side=56)


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
    if any(str(row.get("note")).startswith("failed") for row in report["rows"]):
        raise SystemExit(1)


def _rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    if options.tiny:
        config, device, plan, load, scale = tiny(), torch.device("cpu"), TINY, TINY_LOAD, 0.1
    else:
        config, device, plan = three_billion(), torch.device("cuda"), Plan(repeats=options.repeats)
        load, scale = Load(), 1.0
    found = {"flash_attention_2": is_flash_attn_2_available(), "flash_attention_4": is_flash_attn_4_available()}
    kinds = ["sdpa", ALL_WINDOWS, *(kind for kind, there in found.items() if there and device.type == "cuda")]
    yield {"what": "LM head", "setting": "TRL's" if importlib.util.find_spec("trl") else "plain PyTorch, in chunks"}
    for kind in [kind for kind in found if kind not in kinds]:
        yield {"what": kind, "note": "skipped: its package and a GPU are not both here"}
    yield from _guarded("log-probs", oracle(config, device, kinds, scale=scale))
    yield from _guarded("training step", throughput(config, device, kinds, plan))
    yield from _guarded("sampler", sampler(config, device, load))


def _guarded(what: str, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One part's failure is a row, and the parts after it are still measured."""
    try:
        yield from rows
    except Exception as error:
        yield {"what": what, "note": failure(error)}


if __name__ == "__main__":
    main()
