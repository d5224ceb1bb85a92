"""A world as files: the folder that recipes point at, laid out like a user's own data.

images/*.png                                             query images
train.jsonl, known.jsonl, unknown.jsonl, held_out.jsonl  questions, in the form of `data/plain.py`
prompts/*.txt, prompts/wording.yaml                      the world's protocol in few tokens
image_index/, text_index/                                the tools
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from mmsearch_trl.core.task import Task
from mmsearch_trl.world.indexes import build_indexes
from mmsearch_trl.world.protocol import PROMPTS, TEMPLATES
from mmsearch_trl.world.world import Group, World


def write_world(world: World, folder: Path, *, progress: bool = False) -> None:
    """Write everything of a world, replacing what `folder` holds of it."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "prompts").mkdir(exist_ok=True)
    for group in Group:
        _write_tasks(world.tasks(group), folder / f"{group}.jsonl")
    _write_tasks(world.training_tasks(), folder / "train.jsonl")
    for name, text in asdict(PROMPTS).items():
        (folder / "prompts" / f"{name}.txt").write_text(text, encoding="utf-8")
    TEMPLATES.save(folder / "prompts" / "wording.yaml")
    build_indexes(world, folder, progress=progress)


def _write_tasks(tasks: Iterable[Task], path: Path) -> None:
    lines = []
    for task in tasks:
        image = f"images/{task.id}.png"
        task.images[0].save(path.parent / image)
        row = {
            "id": task.id,
            "question": task.question,
            "image": image,
            "answers": list(task.answers),
            "data_source": task.data_source,
            "category": task.category,
            **task.extra,
        }
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
