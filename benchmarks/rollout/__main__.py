"""Measure the three schedulers once, or study them.

python -m benchmarks.rollout --k 64 --seed 0     writes runs/bench/rollout.json and prints a table
python -m benchmarks.rollout --study             other sizes and ablations: tables and an image
"""

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter


os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the server needs the other cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.rollout.measure import measure, summary
from benchmarks.rollout.model import make_processor, make_protocol, write_checkpoint
from benchmarks.rollout.picture import draw
from benchmarks.rollout.plan import Plan
from benchmarks.rollout.report import environment, table
from benchmarks.rollout.rig import LIMITS, Rig
from benchmarks.rollout.scenario import Scenario
from benchmarks.rollout.schedulers import Tokens
from benchmarks.rollout.script import script
from benchmarks.rollout.server import served
from benchmarks.rollout.study import markdown, scenarios, study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, default=64, help="rollouts, a multiple of 8")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each scheduler but TRL's")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--port", type=int, default=8151)
    parser.add_argument("--study", action="store_true", help="more than an hour; goes on where it was stopped")
    parser.add_argument("--image", type=Path, default=Path("docs/images/rollout.png"), help="of the study")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the server is stopped as well
    options.out.mkdir(parents=True, exist_ok=True)
    if options.study:
        _study(options)
    else:
        _once(options)


def _once(options: argparse.Namespace) -> None:
    about = environment()
    scenario = Scenario(options.k, options.seed)
    with rig([scenario], options.port, options.out) as (running, expected):
        report = summary(measure(running, scenario, expected[0], options.repeats, tell()))
    path = options.out / "rollout.json"
    path.write_text(json.dumps(report | about, indent=1), encoding="utf-8")
    print("\n".join(table(report)), f"\n{path}", sep="")


def _study(options: argparse.Namespace) -> None:
    out = options.out / "rollout_study"
    every = scenarios()
    with rig(every, options.port, options.out) as (running, expected):
        by_name = {(each.k, each.seed): tokens for each, tokens in zip(every, expected, strict=True)}
        study(running, by_name, out, tell())
    tables = "\n".join(markdown(out))
    (out / "tables.md").write_text(tables + "\n", encoding="utf-8")
    draw(out, options.image)
    print(tables, f"\n\n{out / 'tables.md'}\n{options.image}", sep="")


@contextmanager
def rig(scenarios: Sequence[Scenario], port: int, out: Path) -> Iterator[tuple[Rig, list[tuple[Tokens, ...]]]]:
    """A server that knows these scenarios, and the tokens that each should come to."""
    with tempfile.TemporaryDirectory(dir=out) as name:
        folder = Path(name)
        plan, protocol = Plan(), make_protocol(make_processor())
        expected = [
            tuple(Tokens.of(trajectory) for trajectory in script(scenario, protocol, LIMITS, plan))
            for scenario in scenarios
        ]
        plan.save(folder / "plan.json")
        write_checkpoint(folder / "model")
        with served(folder / "model", folder / "plan.json", port, out / "server.log") as server:
            yield Rig(server, folder, expected[-1]), expected


def tell() -> Callable[[str], None]:
    started = perf_counter()
    return lambda text: print(f"[{perf_counter() - started:5.0f} s] {text}", flush=True)


if __name__ == "__main__":
    main()
