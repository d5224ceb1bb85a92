"""Kills training at random points and has the same command end it: are weights, data order and traces the same?

    python -m benchmarks.kill [--points 30] [--only transformers/full/1 vllm/lora/4 ...] [--seed 0] [--out runs/kill]

Of each variant (engine, full weights or LoRA, `steps_per_generation`) one run goes through, and measures how long its
rollouts, updates, saves, syncs and evaluations take. Each further run is the same command in a folder of its own and
gets SIGKILL: half of them at a uniformly random time, half inside a random one of these; one in three is killed once
more when it has gone on. Then the command runs to its end. Its weights must be `torch.equal` to those of the run that
went through, its trajectories (rows, tokens, rewards, advantages) and evaluation rows the same, in the same order.

Runs are forks of this process, which has imported everything; a vLLM server lives through all of its variant's kills,
as servers do; colocated, vLLM starts anew with each run. On vLLM one trajectory is rolled out at a time: how requests
meet in a batch moves the last bits of their log-probs, which the importance correction takes into the loss. The exit
status is 1 where a run differs.
"""

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from benchmarks.golden import figures, prepare, world_keys
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from mmsearch_trl.core.script import run_script
from mmsearch_trl.engine.vllm_process import VLLMProcess
from mmsearch_trl.recipe.command_line import recipe_arguments
from mmsearch_trl.train import main as train
from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer
from mmsearch_trl.trainer.sampler.colocated import ColocatedSampler
from mmsearch_trl.trainer.sampler.server import ServerSampler
from mmsearch_trl.trainer.training_traces import TrainingTraces


Keys = Mapping[str, Any]
_RUN: Keys = {
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_steps": 7,
    "save_strategy": "steps",
    "save_steps": 3,  # inside a batch of four steps, and not at its end
    "eval_strategy": "steps",
    "eval_steps": 5,
    "logging_steps": 1,
    "disable_tqdm": True,
    "resume_from_checkpoint": "auto",
}
_LORA: Keys = {"use_peft": True, "lora_r": 4, "lora_target_modules": "[q_proj,v_proj]"}
_SERVER: Keys = {"max_model_len": 512, "max_num_seqs": 8}
_COLOCATED: Keys = {"vllm_max_model_length": 512}
ENGINES = ("transformers", "vllm", "colocate")
_EVALUATED = 6
"""Rows."""
_PHASES: Mapping[str, tuple[type, str]] = {
    "rollout": (MMSearchGRPOTrainer, "_generate_and_score_completions"),
    "update": (MMSearchGRPOTrainer, "_compute_loss"),
    "traces": (TrainingTraces, "write"),
    "sync": (ServerSampler, "_send_weights"),
    "colocated sync": (ColocatedSampler, "_send_weights"),
    "evaluation": (MMSearchGRPOTrainer, "evaluate"),
    "save": (MMSearchGRPOTrainer, "_save_checkpoint"),
    "final save": (MMSearchGRPOTrainer, "save_model"),
}
_MOST_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Kill:
    """When: `seconds` after the call of that number (from 0) of a phase began; without a phase, after the start."""

    phase: str | None
    call: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.phase or 'any'} {self.call} + {self.seconds:.2f} s"


class Clock:
    """In the process of a run: notes its phases, and kills it when it is time.

    Args:
        file: Gets the phase that the process is in, and at the end how long each call took, by phase.
    """

    def __init__(self, file: Path, kill: Kill | None) -> None:
        self._file, self._kill = file, kill
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._phases = ["between"]
        self.took: dict[str, list[float]] = {name: [] for name in _PHASES}

    def start(self) -> None:
        self._note()
        for name, (cls, method) in _PHASES.items():
            setattr(cls, method, self._noting(name, getattr(cls, method)))
        if self._kill is not None and self._kill.phase is None:
            self._kill_in(self._kill.seconds)

    def end(self) -> None:
        self._file.write_text(json.dumps(self.took))

    def _noting(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        calls = 0

        @wraps(method)
        def noted(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            self._phases.append(name)
            self._note()
            if self._kill is not None and (self._kill.phase, self._kill.call) == (name, calls - 1):
                self._kill_in(self._kill.seconds)
            started = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                self.took[name].append(time.perf_counter() - started)
                self._phases.pop()
                self._note()

        return noted

    def _note(self) -> None:
        os.pwrite(self._descriptor, f"{self._phases[-1]:16}".encode(), 0)

    def _kill_in(self, seconds: float) -> None:
        timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=30, help="kills, dealt to the variants in turn (%(default)s)")
    parser.add_argument("--only", nargs="+", metavar="ENGINE/WEIGHTS/STEPS", default=variants(), choices=variants())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/kill"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    prepare(options.out)
    known = (options.out / "world" / "known.jsonl").read_text().splitlines()[:_EVALUATED]
    (options.out / "world" / "few.jsonl").write_text("".join(f"{line}\n" for line in known))
    results: list[dict[str, Any]] = []
    for number, name in enumerate(options.only):
        count = len(range(number, options.points, len(options.only)))
        results += examine(name, options.out, count, random.Random(f"{options.seed}/{name}"))
        (options.out / "kills.json").write_text(json.dumps(results, indent=1))
    Console().print(table(results))
    return int(not all(result["weights"] and result["traces"] for result in results))


def variants() -> list[str]:
    return [f"{engine}/{kind}/{n}" for engine in ENGINES for kind in ("full", "lora") for n in (1, 4)]


def examine(name: str, out: Path, points: int, chance: random.Random) -> Iterator[dict[str, Any]]:
    """Kill a variant at so many points; a row of the table for each."""
    engine, kind, steps = name.split("/")
    with engine_keys(engine, kind, out) as keys:
        keys |= {
            "steps_per_generation": int(steps),
            "gradient_accumulation_steps": 1,
            **(_LORA if kind == "lora" else {}),
        }
        whole = out / name.replace("/", "-") / "whole"
        took = json.loads(carry_out(whole, out, keys, None)[1])
        for point in range(points):
            folder, attempts = whole.with_name(f"point-{point}"), []
            kills = [drawn(chance, took)] + [drawn(chance, took)] * (chance.random() < 1 / 3)
            for kill in [*kills, *[None] * _MOST_ATTEMPTS]:
                status, phase = carry_out(folder, out, keys, kill, again=bool(attempts))
                attempts.append(f"{kill}: {phase}" if status == -signal.SIGKILL else f"status {status}")
                if status == 0:
                    break
            yield {"variant": name, "point": point, "attempts": attempts} | compared(whole, folder)


def drawn(chance: random.Random, took: Mapping[str, list[float]]) -> Kill:
    """A random point, of a run that took so long."""
    if chance.random() < 0.5:
        return Kill(None, 0, chance.uniform(0, took["all"][0]))
    phase = chance.choice([name for name in _PHASES if took[name]])
    call = chance.randrange(len(took[phase]))
    return Kill(phase, call, chance.uniform(0, took[phase][call]))


@contextmanager
def engine_keys(engine: str, kind: str, out: Path) -> Iterator[dict[str, Any]]:
    """What the recipe needs to roll out on an engine; a vLLM server lives as long as this is open."""
    if engine == "transformers":
        yield {}
        return
    if engine == "colocate":
        yield {"use_vllm": True, "vllm_mode": "colocate", "max_trajectories_in_flight": 1, **_COLOCATED}
        return
    rank = 8 if kind == "lora" else None
    model, log = str(out / "warm_start"), out / "vllm.log"
    with VLLMProcess(model, log, _SERVER, max_lora_rank=rank) as server:
        url = {"vllm_server_base_url": server.url}
        yield {"use_vllm": True, "vllm_mode": "server", "max_trajectories_in_flight": 1, **url}


def carry_out(folder: Path, out: Path, keys: Keys, kill: Kill | None, *, again: bool = False) -> tuple[int, str]:
    """Run the command; its exit status, and the phase in which it was killed, or what `Clock.end` noted."""
    folder.mkdir(parents=True, exist_ok=True)
    if not again:
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    few = out / "world" / "few.jsonl"
    values = world_keys(out) | dict(_RUN) | {"eval_files": f"[{few}]", "output_dir": folder / "run"} | dict(keys)
    arguments = ["--config", "recipes/world/grpo.yaml", *(f"--{key}={value}" for key, value in values.items())]
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os._exit(_run(arguments, folder, kill))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"{folder}: the run ended with {status}; see {folder / 'log'}")
    return status, (folder / "clock").read_text().strip()


def _run(arguments: list[str], folder: Path, kill: Kill | None) -> int:
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    clock, started = Clock(folder / "clock", kill), time.perf_counter()
    clock.start()
    status = run_script(lambda: train(*recipe_arguments(arguments)))
    clock.took["all"] = [time.perf_counter() - started]
    clock.end()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def compared(whole: Path, folder: Path) -> dict[str, bool]:
    """Whether a run ended as the one that went through."""
    [weights, expected] = [
        {
            f"{path.name}/{name}": value
            for path in sorted((run / "run").glob("*.safetensors"))
            for name, value in load_file(path).items()
        }
        for run in (folder, whole)
    ]
    found, wanted = figures(folder / "run"), figures(whole / "run")
    same = weights.keys() == expected.keys() and bool(weights)
    return {
        "weights": same and all(torch.equal(weights[name], value) for name, value in expected.items()),
        "traces": all(found[part] == wanted[part] for part in ("trajectories", "evaluation")),
    }


def table(results: list[dict[str, Any]]) -> Table:
    made = Table(
        "variant", "point", "killed in (drawn: hit)", "weights", "traces", title="SIGKILL, and the same command again"
    )
    for result in results:
        marks = ["equal" if result[part] else "DIFFER" for part in ("weights", "traces")]
        made.add_row(result["variant"], str(result["point"]), "\n".join(result["attempts"]), *marks)
    return made


if __name__ == "__main__":
    sys.exit(main())
