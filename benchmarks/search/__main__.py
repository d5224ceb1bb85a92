"""Measure the retrieval server with each local index, by size of the corpus, beside a plain server.

    python -m benchmarks.search [--sizes 10000 100000 1000000]     writes runs/bench/search.json, prints its tables
    python -m benchmarks.search --table runs/bench/search.json     prints the tables of a report, in Markdown

A size that is measured is in the report at once; a run that is stopped goes on behind the sizes that it has, unless
`--anew` is given.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from benchmarks.search.encoder import write_encoder
from benchmarks.search.measure import Settings, Size
from benchmarks.search.report import environment, slopes, tables
from transformers.utils.logging import disable_progress_bar

from mmsearch_trl.search.text.encoder import TextEncoder


SIZES = (10_000, 100_000, 1_000_000)
QUICK = Settings(rounds=1, seconds=0.05, encoded=200, judged=20, within=300)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N", help="passages")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/search.json"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one tiny size, to see that it works; no figures")
    parser.add_argument("--anew", action="store_true", help="measure what the report has once more")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the tables of this report, and nothing else")
    options = parser.parse_args(arguments)
    if options.table is not None:
        print("\n".join(tables(json.loads(options.table.read_text(encoding="utf-8")))))
        return
    disable_progress_bar()
    report = run(options)
    print("\n".join(tables(report)), f"\n{options.out}", sep="")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every size, and write the report after each."""
    settings = QUICK if options.quick else Settings(seed=options.seed)
    sizes = (300,) if options.quick else options.sizes
    options.out.parent.mkdir(parents=True, exist_ok=True)
    tell, report = _tell(), _begun(options.out, asdict(settings), anew=options.anew)
    with tempfile.TemporaryDirectory(dir=options.out.parent) as name:
        encoder = TextEncoder(write_encoder(Path(name)))
        for count in sizes:
            if str(count) in report["sizes"]:
                continue
            with tempfile.TemporaryDirectory(dir=name) as folder:
                report["sizes"][str(count)] = Size(count, Path(folder), encoder, settings, tell).measure()
            report["slopes"] = slopes(report["sizes"])
            options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def _begun(path: Path, settings: dict[str, Any], *, anew: bool) -> dict[str, Any]:
    """The report that is there, where it is of this machine and these settings; else an empty one."""
    report = environment() | {"settings": settings, "sizes": {}, "slopes": {}}
    if path.exists() and not anew:
        found = json.loads(path.read_text(encoding="utf-8"))
        if all(found.get(part) == report[part] for part in ("settings", "versions", "processor")):
            return found
    return report


def _tell() -> Callable[[str], None]:
    started = perf_counter()
    return lambda text: print(f"[{perf_counter() - started:5.0f} s] {text}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that servers and folders go as well
    main()
