"""Warm-start traces as a file of demonstrations, in the form in which a user writes their own (`mmsearch_trl.sft`).

warm_start.jsonl              conversations
warm_start_images/*.png       their images, once per content

The demo writes its traces as it trains and needs no file; this is for `recipes/world/sft.yaml`.
"""

import json
import random
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.images import image_digest
from mmsearch_trl.core.observation import Hit, ImageHit, Observation
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.protocol.mmsearch import MMSearchProtocol
from mmsearch_trl.world.traces import TraceWriter
from mmsearch_trl.world.world import World


def write_demonstrations(
    world: World, protocol: MMSearchProtocol, folder: Path, count: int, *, progress: bool = False
) -> Path:
    """Write `count` traces, drawn from the world's seed; returns the file."""
    images = folder / "warm_start_images"
    images.mkdir(parents=True, exist_ok=True)
    writer, rng = TraceWriter(world, protocol), random.Random(f"world {world.seed} demonstrations")
    path = folder / "warm_start.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for _ in tqdm(range(count), desc="Writing demonstrations", unit="trace", disable=not progress):
            file.write(json.dumps(_conversation(writer.trace(rng), images)) + "\n")
    return path


def _conversation(trace: Trajectory, images: Path) -> dict[str, Any]:
    turns: list[dict[str, Any]] = []
    for turn in trace.turns:
        turns.append({"assistant": turn.text})
        if turn.observation is not None:
            turns.append(_results(turn.observation, images))
    image = _saved(trace.task.images[0], images)
    return {"id": trace.task.id, "question": trace.task.question, "image": image, "turns": turns}


def _results(observation: Observation, images: Path) -> dict[str, Any]:
    key = "image_results" if observation.tool == ActionKind.IMAGE_SEARCH else "text_results"
    return {key: [_hit(hit, images) for hit in observation.hits]}


def _hit(hit: Hit, images: Path) -> dict[str, str | None]:
    if not isinstance(hit, ImageHit):
        return {"title": hit.title, "text": hit.text, "url": hit.url}
    image = {"image": _saved(hit.thumbnail, images)} if hit.thumbnail else {}
    return {"title": hit.title, "url": hit.url, **image}


def _saved(image: Image.Image, images: Path) -> str:
    """Store an image unless it is there; its path from the file of demonstrations."""
    path = images / f"{image_digest(image)[:32]}.png"
    if not path.exists():
        image.save(path)
    return f"{images.name}/{path.name}"
