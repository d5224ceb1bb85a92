"""Wall time of `mmsearch eval` on rows of the world, on each engine, beside the command as it was before.

    python -m benchmarks.evaluation [--rows 256] [--out runs/bench/evaluation] [--only former one ...]

The command as it was: batch after batch on the transformers engine, in one process, each batch waiting for its slowest
trajectory. Every kind evaluates the same model greedily on the same rows, and loading is not timed. The rows of each
are compared with the former's, but for times; what is printed says how many differ.
"""

import argparse
import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from mmsearch_trl.core.reward import ScoredTrajectory
from mmsearch_trl.data.tasks import read_tasks
from mmsearch_trl.engine.vllm_process import VLLMProcess
from mmsearch_trl.evaluation.report import save_rows
from mmsearch_trl.protocol.base import SearchProtocol
from mmsearch_trl.recipe.build import build_engine, build_protocol, load_agent, load_processor
from mmsearch_trl.recipe.command_line import recipe_arguments
from mmsearch_trl.recipe.recipe import Recipe, load_recipe
from mmsearch_trl.rewards.rule import MessageRule
from mmsearch_trl.rollout.loop import named_sampling, run_batch
from mmsearch_trl.rollout.toolbox import Toolbox
from mmsearch_trl.search.factory import build_runtime
from mmsearch_trl.traces.files import TraceWriter, trace_path
from mmsearch_trl.traces.rows import evaluation_row
from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.world.demo import make_warm_start
from mmsearch_trl.world.files import write_world
from mmsearch_trl.world.world import World


BATCH = 64
CACHE = {"max_model_len": 1024, "enforce_eager": True, "num_gpu_blocks_override": 1024}
KINDS: Mapping[str, Mapping[str, Any]] = {
    "one": {},
    "two": {"ddp_backend": "gloo"},
    "server": {"use_vllm": True, "vllm_mode": "server"},
    "colocate": {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_enable_sleep_mode": False,
        "vllm_engine_args": json.dumps(CACHE),
    },
}
"""Keys over the recipe. `two` is launched in two processes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--steps", type=int, default=200, help="of the warm start: enough to search, answer and err")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/evaluation"))
    parser.add_argument("--only", nargs="+", choices=["former", *KINDS], default=["former", *KINDS])
    options = parser.parse_args()
    if importlib.util.find_spec("vllm") is None:
        options.only = [kind for kind in options.only if kind not in ("server", "colocate")]
    data = prepare(options.out, options.rows, options.steps)
    seconds: dict[str, float] = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    for kind in options.only:
        seconds[kind], rows[kind] = carry_out(kind, options.out, data)
        print(f"{kind}: {seconds[kind]:.1f} s", flush=True)
    print(f"\n| kind | seconds, {options.rows} rows | of the former's | rows that differ |\n|---|---|---|---|")
    first = options.only[0]
    for kind in options.only:
        unequal = sum(a != b for a, b in zip(rows[first], rows[kind], strict=True))
        print(f"| {kind} | {seconds[kind]:.1f} | {seconds[kind] / seconds[first]:.2f} | {unequal} |")
    (options.out / "seconds.json").write_text(json.dumps(seconds, indent=1), encoding="utf-8")


def prepare(out: Path, count: int, steps: int) -> Path:
    """World 0, a model that was taught for a short time, and the first rows of its questions."""
    if not (out / "warm_start").exists():
        world = World(0)
        write_world(world, out / "world")
        make_warm_start(world, out / "warm_start", steps=steps)
    lines = (out / "world" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    rows = [json.loads(line) for line in lines]
    rows = [row | {"image": str((out / "world" / row["image"]).resolve())} for row in rows]
    data = out / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return data


def carry_out(kind: str, out: Path, data: Path) -> tuple[float, list[dict[str, Any]]]:
    """Seconds and rows of one kind."""
    folder = out / kind
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    arguments = _arguments(out, data, folder)
    if kind == "former":
        seconds = former(load_recipe(*recipe_arguments(arguments)))
    else:
        flags = {"max_model_len": CACHE["max_model_len"], "max_num_seqs": BATCH}
        server = VLLMProcess(str(out / "warm_start"), out / "server.log", flags) if kind == "server" else None
        with server or nullcontext():
            keys = dict(KINDS[kind]) | ({"vllm_server_base_url": server.url} if server else {})
            _launch([*arguments, *(f"--{key}={value}" for key, value in keys.items())], 2 if kind == "two" else 1)
        seconds = json.loads((folder / "evaluation" / "summary.json").read_text(encoding="utf-8"))["seconds"]
    [path] = (folder / "evaluation").glob("data_*.json")
    # The former command's scores were doubles, where the trainer's have always been floats.
    rows = json.loads(path.read_text(encoding="utf-8"))
    return seconds, [row | {"seconds": None, "score": row["score"] and round(row["score"], 6)} for row in rows]


def former(recipe: Recipe) -> float:
    """Seconds of the command's loop as it was; what it wrote is written as well."""
    args, folder = recipe.trainer, Path(str(recipe.trainer.output_dir)) / "evaluation"
    assert isinstance(args, MMSearchGRPOConfig)
    search = build_runtime(recipe.search)
    protocol = build_protocol(recipe, load_processor(recipe.model))
    assert isinstance(protocol, SearchProtocol)
    engine = build_engine(load_agent(recipe.model).eval(), protocol.chat, max_batch=args.max_rollout_batch)
    tools, tokenizer, saved = Toolbox(search, protocol.tools), protocol.chat.tokenizer, []

    rule = recipe.reward.scored_by
    assert isinstance(rule, MessageRule)

    async def evaluate() -> None:
        number = 0
        with TraceWriter(trace_path(folder, "data"), tokenizer) as traces:
            left = read_tasks(recipe.data.eval_files[0])
            while tasks := list(islice(left, args.max_rollout_batch)):
                names = [f"{args.seed}/eval_data/{number + i}" for i in range(len(tasks))]
                samplings = [named_sampling(recipe.rollout, name, args.eval_temperature) for name in names]
                trajectories = await run_batch(tasks, engine, protocol, tools, recipe.rollout, samplings)
                parts = [rule.score_messages(t.messages, t.task.answers, None) for t in trajectories]
                scored = [
                    ScoredTrajectory(trajectory=trajectory, parts=part)
                    for trajectory, part in zip(trajectories, parts, strict=True)
                ]
                traces.write(scored, step=0, split="data")
                saved.extend(asdict(evaluation_row(item, tokenizer, step=0)) for item in scored)
                number += len(tasks)
        await search.disconnect()

    started = time.perf_counter()
    asyncio.run(evaluate())
    save_rows(saved, folder / f"data_{len(saved)}.json")
    seconds = time.perf_counter() - started
    engine.close()
    search.close()
    return seconds


def _arguments(out: Path, data: Path, folder: Path) -> list[str]:
    world = out / "world"
    keys: dict[str, Any] = {
        "model_name_or_path": out / "warm_start",
        "eval_files": data,
        "output_dir": folder,
        "eval_temperature": 0.0,
        "max_rollout_batch": BATCH,
        "per_device_eval_batch_size": BATCH,
        "search.image.path": world / "image_index",
        "search.text.path": world / "text_index",
        "reply_templates": world / "prompts" / "wording.yaml",
        "disable_tqdm": True,
    }
    for prompt in ("first_turn", "after_image_search", "after_text_search", "forced_answer"):
        keys[f"{prompt}_prompt"] = world / "prompts" / f"{prompt}.txt"
    return ["--config", "recipes/world/grpo.yaml", *(f"--{key}={value}" for key, value in keys.items())]


def _launch(arguments: list[str], processes: int) -> None:
    launch = ["-m", "accelerate.commands.launch", "--num_processes", str(processes), "--num_machines", "1"]
    launch += ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else ["--cpu"]  # gloo, by `use_cpu`
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    command = [sys.executable, *launch, "-m", "mmsearch_trl.evaluate", *arguments]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": threads}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the evaluation ended with {done.returncode}: {done.stderr[-3000:]}")


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    main()
