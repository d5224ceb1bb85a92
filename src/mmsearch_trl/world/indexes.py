"""The world's two search indexes: the real image index, asked with pixels, and the real BM25 index over passages.

    sources/images/*.png, sources/thumbnails/*.png     an image and a thumbnail per entity
    sources/images.jsonl, sources/passages.jsonl       what the indexes are built from
    image_index/, text_index/                          the indexes

They hold the entities of all three groups, so that a search can find every emblem that a task shows. The indexed
images are not shifted and the query images are, so a query never equals an indexed image byte for byte.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsearch_trl.search.index_build import build_image_index, build_text_index
from mmsearch_trl.world.emblems import THUMBNAIL_SIZE, draw
from mmsearch_trl.world.world import World


@dataclass(frozen=True, slots=True)
class WorldIndexes:
    """Folders of the image index and the text index of one world."""

    image: Path
    text: Path


def write_sources(world: World, folder: Path) -> tuple[Path, Path]:
    """Write the images, thumbnails and passages of a world; returns the two JSONL files (images, passages)."""
    for name in ("images", "thumbnails"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    for number, entity in enumerate(world.entities):
        image, thumbnail = f"images/{number:03d}.png", f"thumbnails/{number:03d}.png"
        draw(entity.emblem).save(folder / image)
        draw(entity.emblem, THUMBNAIL_SIZE).save(folder / thumbnail)
        images.append({"image": image, "thumbnail": thumbnail, "title": entity.name, "url": entity.url})
    passages = [{"title": entity.name, "text": entity.passage, "url": entity.url} for entity in world.entities]
    images_file, passages_file = folder / "images.jsonl", folder / "passages.jsonl"
    _write_rows(images_file, images)
    _write_rows(passages_file, passages)
    return images_file, passages_file


def build_indexes(world: World, folder: Path, *, progress: bool = False) -> WorldIndexes:
    """Write the sources of a world and build both of its indexes, replacing those that `folder` holds."""
    images, passages = write_sources(world, folder / "sources")
    indexes = WorldIndexes(folder / "image_index", folder / "text_index")
    build_image_index(images, indexes.image, thumbnail_side=THUMBNAIL_SIZE, overwrite=True, progress=progress)
    build_text_index(passages, indexes.text, overwrite=True, progress=progress)
    return indexes


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
