"""Short runs in the world for tests of the scripts: arguments as a user would type them."""

import json
from pathlib import Path
from typing import Any


RECIPES = Path(__file__).parents[1] / "recipes" / "world"
QUICK: dict[str, Any] = {"per_device_train_batch_size": 4, "num_generations": 2, "max_steps": 1, "eval_files": "[]"}
"""One GRPO step on two questions."""
DIRECT = """
model_name_or_path: org/model
protocol: direct
train_files: [rows.jsonl]
use_cpu: true
bf16: false
per_device_train_batch_size: 8
num_generations: 4
"""
"""A recipe without tools, to be read and not carried out."""


def grpo_arguments(home: Path, out: Path, **overrides: Any) -> list[str]:
    """`recipes/world/grpo.yaml` on the world in `home` (as `mmsearch world --out home` makes it)."""
    values = {
        "model_name_or_path": home / "model",
        "train_files": home / "world" / "train.jsonl",
        "eval_files": home / "world" / "known.jsonl",
        "search.image.path": home / "world" / "image_index",
        "search.text.path": home / "world" / "text_index",
    }
    return _arguments("grpo.yaml", home, values | {"output_dir": out} | overrides)


def sft_arguments(home: Path, out: Path, **overrides: Any) -> list[str]:
    """`recipes/world/sft.yaml` on the world in `home`."""
    values = {"model_name_or_path": home / "model", "train_files": home / "world" / "warm_start.jsonl"}
    return _arguments("sft.yaml", home, values | {"output_dir": out} | overrides)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lessons(world: Path) -> list[dict[str, Any]]:
    """Conversations about the first known entity: look it up, then answer right."""
    tasks = [json.loads(line) for line in (world / "known.jsonl").read_text().splitlines()[:3]]
    pictures = [json.loads(line) for line in (world / "sources" / "images.jsonl").read_text().splitlines()[:3]]
    results = [{"title": row["title"], "url": row["url"], "image": f"sources/{row['thumbnail']}"} for row in pictures]
    return [
        {
            "id": task["id"],
            "question": task["question"],
            "image": task["image"],
            "turns": [
                {"assistant": "<reason> it is new</reason><search><img></search>"},
                {"image_results": results},
                {"assistant": f"<reason> it is new</reason><answer> {task['answers'][0]}</answer>"},
            ],
        }
        for task in tasks
    ]


def _arguments(recipe: str, home: Path, values: dict[str, Any]) -> list[str]:
    prompts = home / "world" / "prompts"
    names = ("first_turn", "after_image_search", "after_text_search", "forced_answer")
    values = {f"{name}_prompt": prompts / f"{name}.txt" for name in names} | values
    values = {"reply_templates": prompts / "wording.yaml"} | values
    return ["--config", str(RECIPES / recipe), *(f"--{key}={value}" for key, value in values.items())]
