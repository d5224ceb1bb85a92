"""A recipe in miniature: the same recipe over a small model, questions and indexes made on the spot, on a CPU.

model/          of the recipe's family, untrained
world/          questions with their images, indexes; demonstrations for a supervised recipe
recipe.yaml     extends the recipe, and changes no more than what it runs on and how long
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from mmsearch_trl.core.boundaries import writing
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.recipe.layers import Layers, kind_of
from mmsearch_trl.recipe.shipped import shipped_recipes
from mmsearch_trl.recipe.written import ON_A_CPU
from mmsearch_trl.sokoban.data_set import write_levels
from mmsearch_trl.world.demonstrations import write_demonstrations
from mmsearch_trl.world.files import write_world
from mmsearch_trl.world.miniature import Family, save_miniature
from mmsearch_trl.world.protocol import build_protocol
from mmsearch_trl.world.tokenizer import build_processor
from mmsearch_trl.world.world import Group, World


_ON_A_CPU: dict[str, Any] = {
    "dtype": "float32",
    "attn_implementation": "sdpa",
    **ON_A_CPU,
    "load_in_4bit": False,
    "load_in_8bit": False,
    "push_to_hub": False,
    "report_to": "none",
}
_SHORT: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "per_device_eval_batch_size": 4,
    "max_steps": 2,
    "logging_steps": 1,
    "eval_steps": 2,
    "save_steps": 2,
    "eval_on_start": False,
}
_SHORT_ROLLOUTS: dict[str, Any] = {
    "num_generations": 2,
    "generation_batch_size": None,
    "steps_per_generation": None,
    "filter_zero_variance_groups": False,  # untrained rollouts all earn the same
    "carry_surplus_groups": False,
    "use_vllm": False,
}
_COLOCATED: dict[str, Any] = {"vllm_mode": "server", "vllm_enable_sleep_mode": False, "vllm_server_urls": None}
_PROMPT_KEYS = (
    *("first_turn_prompt", "after_image_search_prompt", "after_text_search_prompt", "forced_answer_prompt"),
    "reply_templates",
)
_DEMONSTRATIONS = 16
_EVALUATED = 4
_ROWS = 32
"""Of a recipe without tools, those that it is evaluated on included."""
_SYSTEM = "Reason in <think> </think>, then answer in <answer> $2$ </answer>."


def write_tiny_recipe(recipe: Path, out: Path) -> tuple[Literal["train", "sft"], Path]:
    """Write all of it; returns the subcommand that runs it, and the file.

    Raises:
        UserError: the recipe cannot be read, or `out` holds something already or cannot be written.
    """
    layers = Layers()
    layers.add_file(recipe)
    values = layers.values
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: name a new folder")
    supervised = kind_of(recipe, {}) == "sft"
    protocol = values.get("protocol", "mmsearch_r1")
    vision = protocol != "search_r1"
    world = World(0)
    with writing(out):
        save_miniature(Family.of(str(values.get("model_name_or_path", "")), vision=vision), out / "model")
        write_world(world, out / "world")
        keys = {"model_name_or_path": str(out / "model"), "output_dir": str(out / "run"), **_ON_A_CPU, **_SHORT}
        keys |= _prompts(values, out / "world" / "prompts")
        if supervised:
            demonstrations = write_demonstrations(
                world, build_protocol(build_processor()), out / "world", _DEMONSTRATIONS
            )
            keys |= {"train_files": [str(demonstrations)], "eval_files": []}
        elif protocol == "direct":
            plays = (values.get("reward") or {}).get("rule") == "sokoban"
            rows = _levels(values, out / "world") if plays else _sums(values, out / "world")
            # Limits of pixels are those of a model that takes larger pictures.
            keys |= _SHORT_ROLLOUTS | _COLOCATED | rows | {"min_pixels": None, "max_pixels": None}
            keys["rollout"] = {"max_turn_tokens": 48}
        else:
            keys |= _SHORT_ROLLOUTS | _data(world, out / "world", vision=vision)
        if (values.get("reward") or {}).get("overlong"):
            keys["reward"] = {"overlong": {"max_tokens": 48, "buffer": 24}}
        file = out / "recipe.yaml"
        shipped = {path: name for name, path in shipped_recipes().items()}
        base = shipped.get(recipe, str(recipe.resolve()))
        text = yaml.safe_dump({"extends": base} | keys, sort_keys=False)
        file.write_text(f"# {base} in miniature: to try it before a GPU is rented.\n{text}", encoding="utf-8")
    return "sft" if supervised else "train", file


def _prompts(values: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The world's own, where a recipe names prompts that a world has and that are not there yet."""
    named = {key: folder / Path(str(values[key])).name for key in _PROMPT_KEYS if values.get(key)}
    return {key: str(file) for key, file in named.items() if file.is_file() and not Path(values[key]).is_file()}


def _data(world: World, folder: Path, *, vision: bool) -> dict[str, Any]:
    """Keys of questions and indexes; a language model's questions name what they are about."""
    keys: dict[str, Any] = {"train_files": [str(folder / "train.jsonl")]}
    few = folder / "few.jsonl"
    if vision:
        few.write_text("".join((folder / "held_out.jsonl").read_text().splitlines(keepends=True)[:_EVALUATED]))
    else:
        rows = [
            json.dumps({"id": entity.name, "question": f"What city is {entity.name} in?", "answers": [entity.city]})
            for group in (Group.UNKNOWN, Group.HELD_OUT)
            for entity in world.groups[group]
        ]
        (folder / "train.jsonl").write_text("\n".join(rows[:-_EVALUATED]) + "\n")
        few.write_text("\n".join(rows[-_EVALUATED:]) + "\n")
    search: dict[str, Any] = {"text": {"backend": "bm25", "path": str(folder / "text_index")}, "cache": None}
    if vision:
        search["image"] = {"backend": "index", "path": str(folder / "image_index")}
    limits = {"max_turns": 3, "max_turn_tokens": 48}
    return keys | {"eval_files": [str(few)], "search": search, "rollout": limits}


def _sums(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Keys of sums, as conversations, every second one with a picture of the world."""
    said = values.get("system_prompt") or values.get("template")  # by the recipe, for all rows
    system = [] if said else [{"role": "system", "content": _SYSTEM}]
    pictures = [json.loads(line)["image"] for line in (folder / "train.jsonl").read_text().splitlines()[:_ROWS]]
    rows = []
    for number, picture in enumerate(pictures):
        one, other = divmod(number, 10)
        asked: list[dict[str, str]] = [{"type": "text", "text": f"What is ${one} + {other}$?"}]
        if number % 2:
            asked.insert(0, {"type": "image", "image": f"file://{(folder / picture).resolve()}"})
        messages = [*system, {"role": "user", "content": asked}]
        rows.append(json.dumps({"message": json.dumps(messages), "answer": f"${one + other}$"}))
    files = {"sums": rows[:-_EVALUATED], "few_sums": rows[-_EVALUATED:]}
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    few = [str(folder / "few_sums.jsonl")] if values.get("eval_files") else []
    return {"train_files": [str(folder / "sums.jsonl")], "eval_files": few}


def _levels(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Keys of levels of Sokoban, as `mmsearch data sokoban` writes them."""
    trained = write_levels(folder / "levels", "small-v0", _ROWS - _EVALUATED, seed=0)
    few = values.get("eval_files") and [str(write_levels(folder / "few_levels", "small-v0", _EVALUATED, seed=1))]
    return {"train_files": [str(trained)], "eval_files": few or []}
