"""Training steps without tools in three arms, and a rollout of one turn beside one call of the engine.

    python -m benchmarks.lmm_r1_speed                writes runs/bench/lmm_r1_speed.json and prints a table
    python -m benchmarks.lmm_r1_speed --parity       the same of parity, in lmm_r1_parity.json
    ... --tiny                                       a model and batches for a test: its figures mean nothing

Arms take turns on one server, and their order alternates. Trainer and engine have one thread each.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any


os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the server
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import torch
from benchmarks.gpu.report import machine, write
from benchmarks.lmm_r1_speed.arms import ARMS, Work
from benchmarks.lmm_r1_speed.engines import Batch, Colocated, Kind, Server, Transformers
from benchmarks.lmm_r1_speed.model import GEOMETRY, TINY, WINDOW, write_checkpoint
from benchmarks.lmm_r1_speed.parity import measure, summary
from benchmarks.lmm_r1_speed.prompts import make_tasks
from benchmarks.lmm_r1_speed.report import PROMPTS, parity_table, speed_table

from mmsearch_trl.engine.vllm_process import VLLMProcess


ENGINES = ("transformers", "server", "colocate")


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine(), "group": options.group}
    with tempfile.TemporaryDirectory(dir=options.out) as name:
        checkpoint = Path(name) / "model"
        report["parameters"] = write_checkpoint(checkpoint, TINY if options.tiny else GEOMETRY)
        report |= (parity if options.parity else speed)(checkpoint, options)
    report["load_at_the_end"] = os.getloadavg()[0]
    path = options.out / f"lmm_r1_{'parity' if options.parity else 'speed'}.json"
    write(report, path)
    lines = (parity_table if options.parity else speed_table)(report)
    print(f"{report['parameters'] / 1e6:.1f} M parameters, {report['machine']}", "", *lines, "", path, sep="\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parity", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--prompts", type=int, help="of a step, 4; of a parity batch, 32")
    parser.add_argument("--group", type=int, help="completions of a prompt, 8")
    parser.add_argument("--tokens", type=int, help="of a completion, 64")
    parser.add_argument("--repeats", type=int, help="times that every arm, or pair, is run: 3, or 5")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES, help="of parity")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    usual = (32, 8, 64, 5) if options.parity else (4, 8, 64, 3)
    tiny = (2, 2, 4, 1)
    for key, value in zip(("prompts", "group", "tokens", "repeats"), tiny if options.tiny else usual, strict=True):
        if getattr(options, key) is None:
            setattr(options, key, value)
    return options


def speed(checkpoint: Path, options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, dict[str, list[Any]]] = {kind: {name: [] for name in ARMS} for kind in PROMPTS.values()}
    with served(checkpoint, options) as url:
        work = Work(
            checkpoint=checkpoint,
            url=url,
            folder=checkpoint.parent / "run",
            pictures=False,
            prompts=options.prompts,
            group=options.group,
            tokens=options.tokens,
            steps=1 if options.tiny else 2,
        )
        for repeat in range(options.repeats):
            for pictures, kind in PROMPTS.items():
                for name in list(ARMS) if repeat % 2 else reversed(ARMS):
                    steps = ARMS[name](replace(work, pictures=pictures))
                    found[kind][name] += [asdict(step) for step in steps]
                    tell(f"{kind}, {name}: " + ", ".join(f"{sum(step.seconds.values()):.2f} s" for step in steps))
    return {"prompts": options.prompts, "tokens": options.tokens, "speed": found}


def parity(checkpoint: Path, options: argparse.Namespace) -> dict[str, Any]:
    rows = options.prompts * options.group
    found: dict[str, dict[str, Any]] = {}
    for name in options.engines:
        with engine(name, checkpoint, options) as kind:
            found[name] = {}
            for pictures, title in PROMPTS.items():
                batch = Batch(make_tasks(options.prompts, pictures=pictures), options.group, options.tokens)
                pairs = measure(kind, batch, options.repeats, lambda text, n=name, t=title: tell(f"{n}, {t}: {text}"))
                found[name][title] = summary(pairs)
    return {"prompts": options.prompts, "rollouts": rows, "tokens": options.tokens, "parity": found}


@contextmanager
def engine(name: str, checkpoint: Path, options: argparse.Namespace) -> Iterator[Kind]:
    rows = options.prompts * options.group
    if name == "transformers":
        yield Transformers(checkpoint, rows)
    elif name == "server":
        with served(checkpoint, options) as url:
            yield Server(url, checkpoint)
    else:
        colocated = Colocated(checkpoint, rows)
        yield colocated
        colocated.close()


@contextmanager
def served(checkpoint: Path, options: argparse.Namespace) -> Iterator[str]:
    """A server for this project's trainer and for TRL's, which wants the log-probs of what is sampled from."""
    flags = {"max_model_len": WINDOW, "max_num_seqs": 256, "logprobs_mode": "processed_logprobs"}
    with VLLMProcess(str(checkpoint), options.out / "lmm_r1_speed.log", flags) as server:
        yield server.url


def tell(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
