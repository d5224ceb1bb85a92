"""Golden figures: what short runs of the world come to, to the bit, before and after a change that must not change it.

    python -m benchmarks.golden FIGURES.json [--out runs/golden] [--only full lora ...]

Without FIGURES.json the runs are carried out and it is written; with it they are carried out and compared, key by key,
and the exit status is 1 where one differs. Record with the revision before the change, compare with the one after, on
one machine: the last bits of a matrix product are the processor's.

Every run is the training command as a user types it. Of each: losses, norms of gradients and rewards of every step as
logged; a digest of every trajectory (sampled and observed tokens, actions, reward and its parts, advantage); a digest
of the weights saved at the end; every evaluation row. Times are left out.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from mmsearch_trl.world.demo import make_warm_start
from mmsearch_trl.world.files import write_world
from mmsearch_trl.world.world import World


WARM_START_STEPS = 200
"""Enough for a policy that searches, answers and errs."""

Keys = Mapping[str, Any]
_SMALL: Keys = {"per_device_train_batch_size": 16, "num_generations": 4, "max_steps": 3, "eval_files": "[]"}
_LORA: Keys = {"use_peft": True, "lora_r": 4, "lora_target_modules": "[q_proj,v_proj]"}
RUNS: Mapping[str, Keys] = {
    "full": {"per_device_train_batch_size": 64, "max_steps": 10, "per_device_eval_batch_size": 30},
    "accumulated": {**_SMALL, "gradient_accumulation_steps": 2, "num_iterations": 2, "steps_per_generation": 2},
    "lora": {**_SMALL, **_LORA},
    "reference": {**_SMALL, "beta": 0.04},
    "trajectory_level": {**_SMALL, "trajectory_level_loss": True, "num_iterations": 2},
    "filtered": {**_SMALL, "filter_zero_variance_groups": True},
    "compat": {**_SMALL, "protocol": "mmsearch_r1_upstream"},
    "two_processes": {**_SMALL, "per_device_train_batch_size": 8, "ddp_backend": "gloo"},
    "interrupted": {
        **_SMALL,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
    },
}
"""Keys over `recipes/world/grpo.yaml`; `interrupted` is then resumed from its second step and must end the same."""

_LOGGED = ("loss", "grad_norm", "reward", "reward_std", "entropy", "kl", "learning_rate", "num_tokens", "accuracy/")
_LOGGED += ("clip_ratio/", "completions/", "reward/", "rewards/", "format/", "search/ratio", "search/image_ratio")
_LOGGED += ("search/text_ratio", "rollout/turns", "rollout/answered", "rollout/failed", "train/", "eval_")
_TIMES = ("seconds", "runtime", "per_second", "tokens_per")
_ROW = ("id", "input_text", "output_text", "score", "right", "stop", "actions", "responses", "rewards")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/golden"))
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    options = parser.parse_args()
    prepare(options.out)
    found = {name: carry_out(name, options.out) for name in options.only}
    if not options.figures.exists():
        options.figures.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"recorded {len(found)} runs in {options.figures}")
        return 0
    recorded = json.loads(options.figures.read_text(encoding="utf-8"))
    lines = [line for name in found for line in differences(recorded[name], found[name], name)]
    print("\n".join(lines) or f"all figures of {len(found)} runs are equal")
    return int(bool(lines))


def prepare(out: Path) -> None:
    """World 0 and a model that was taught for a short time, unless they are there."""
    if not (out / "warm_start").exists():
        world = World(0)
        write_world(world, out / "world")
        make_warm_start(world, out / "warm_start", steps=WARM_START_STEPS)


def carry_out(name: str, out: Path) -> dict[str, Any]:
    """Run the training command and return its figures; the run is resumed once where it left checkpoints."""
    folder = out / name
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    processes = 2 if name == "two_processes" else 1
    _train(out, folder, RUNS[name], processes)
    found = figures(folder)
    if name == "interrupted":
        resumed = {**RUNS[name], "resume_from_checkpoint": str(folder / "checkpoint-2")}
        _train(out, folder, resumed, processes)
        found["resumed"] = figures(folder)
    return found


def _train(out: Path, folder: Path, overrides: Keys, processes: int) -> None:
    keys = world_keys(out) | {"output_dir": folder, "logging_steps": 1, "disable_tqdm": True}
    launch = ["-m", "accelerate.commands.launch", "--num_processes", str(processes), "--num_machines", "1"]
    launch += ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else ["--cpu"]  # gloo, by `use_cpu`
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [sys.executable, *launch, "-m", "mmsearch_trl.train", "--config", "recipes/world/grpo.yaml"]
    command += [f"--{key}={value}" for key, value in (keys | dict(overrides)).items()]
    with (out / f"{folder.name}.log").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"the run {folder.name} ended with {done.returncode}; see {log.name}")


def world_keys(out: Path) -> dict[str, Any]:
    """The places of what `prepare` made."""
    world = out / "world"
    keys: dict[str, Any] = {
        "model_name_or_path": out / "warm_start",
        "train_files": world / "train.jsonl",
        "eval_files": f"[{world / 'known.jsonl'}, {world / 'held_out.jsonl'}]",
        "search.image.path": world / "image_index",
        "search.text.path": world / "text_index",
        "reply_templates": world / "prompts" / "wording.yaml",
    }
    for prompt in ("first_turn", "after_image_search", "after_text_search", "forced_answer"):
        keys[f"{prompt}_prompt"] = world / "prompts" / f"{prompt}.txt"
    return keys


def figures(folder: Path) -> dict[str, Any]:
    """What a finished run folder says, without times."""
    state = json.loads((folder / "trainer_state.json").read_text())
    traces = sorted((folder / "traces").glob("train*.jsonl"))
    return {
        "steps": [
            {key: value for key, value in log.items() if key.startswith(_LOGGED) and not key.endswith(_TIMES)}
            for log in state["log_history"]
        ],
        "trajectories": [_trajectory(line) for path in traces for line in path.read_text().splitlines()],
        "weights": _weights(folder),
        "evaluation": [_row(row) for path in sorted((folder / "evaluation").glob("*.json")) for row in _rows(path)],
    }


def differences(recorded: Any, found: Any, place: str) -> Iterable[str]:
    """A line for every figure that is not the recorded one."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        for key in sorted({*recorded, *found}):
            yield from differences(recorded.get(key, "absent"), found.get(key, "absent"), f"{place}/{key}")
    elif isinstance(recorded, list) and isinstance(found, list) and len(recorded) == len(found):
        for number, (before, after) in enumerate(zip(recorded, found, strict=True)):
            yield from differences(before, after, f"{place}/{number}")
    elif recorded != found:
        yield f"{place}: was {_short(recorded)}, is {_short(found)}"


def _trajectory(line: str) -> str:
    record = json.loads(line)
    # Without log-probs: their last digit depends on which turns happened to share a batch of the engine.
    tokens = [[[text, mask, count] for text, mask, _, count in turn["tokens"]] for turn in record["turns"]]
    turns = [[turn[key] for key in ("text", "action", "action_text")] for turn in record["turns"]]
    kept = [record[key] for key in ("id", "step", "prompt", "images", "reward", "rewards", "advantage")]
    return _digest([kept, record["outcome"]["stop"], turns, tokens])


def _row(row: dict[str, Any]) -> str:
    return _digest([row[key] for key in _ROW])


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = json.loads(path.read_text())
    return rows if isinstance(rows, list) else []


def _weights(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                digest.update(name.encode() + file.get_tensor(name).float().numpy().tobytes())
    return digest.hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:77]}..."


if __name__ == "__main__":
    sys.exit(main())
