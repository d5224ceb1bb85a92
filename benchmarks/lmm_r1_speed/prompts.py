"""Sums to be worked out, with a picture each or without, as tasks and as the rows that trainers take."""

import io
import random
from typing import Any

import datasets
from benchmarks.lmm_r1_speed.model import SIDE
from PIL import Image

from mmsearch_trl.core.task import Task
from mmsearch_trl.data.dataset import FEATURES


def make_tasks(count: int, *, pictures: bool, seed: int = 0) -> list[Task]:
    """Different questions of a line; pictures are noise, each another."""
    draw = random.Random(seed)
    return [_task(number, draw, pictures) for number in range(count)]


def rows_of(tasks: list[Task]) -> datasets.Dataset:
    """Rows as this project's trainer takes them."""
    rows = [
        {
            "prompt": [{"role": "user", "content": task.question}],
            "id": task.id,
            "question": task.question,
            "messages": [],
            "images": [_png(image) for image in task.images],
            "image_sizes": [image.size for image in task.images],
            "answers": list(task.answers),
            "data_source": "sums",
            "category": None,
            "image_url": None,
            "extra": "{}",
        }
        for task in tasks
    ]
    return datasets.Dataset.from_list(rows, features=FEATURES)


def trl_rows_of(tasks: list[Task]) -> datasets.Dataset:
    """The same rows as TRL takes them: images as files, decoded when a row is read."""
    rows: list[dict[str, Any]] = [{"prompt": [{"role": "user", "content": task.question}]} for task in tasks]
    if not tasks[0].images:
        return datasets.Dataset.from_list(rows)
    for row, task in zip(rows, tasks, strict=True):
        row["images"] = [{"bytes": _png(image), "path": None} for image in task.images]
    plain = datasets.Dataset.from_list(rows)
    return plain.cast_column("images", datasets.List(datasets.Image()))


def _task(number: int, draw: random.Random, pictures: bool) -> Task:
    a, b, c = (draw.randrange(10, 100) for _ in range(3))
    question = f"work out {a} + {b} - {c}, think first and put the number at the end"
    shown = (Image.frombytes("RGB", (SIDE, SIDE), draw.randbytes(3 * SIDE * SIDE)),) if pictures else ()
    return Task(id=f"sum-{number}", question=question, images=shown, answers=(str(a + b - c),))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
