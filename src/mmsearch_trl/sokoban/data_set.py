"""A data set of levels: one line of JSON and one picture each, for a run without tools.

levels.jsonl     messages, level, data_source; `answer` is empty
frames/000000.png
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mmsearch_trl.core.boundaries import writing
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.sokoban.game import MOST_MOVES
from mmsearch_trl.sokoban.generator import SIZES, levels
from mmsearch_trl.sokoban.level import Level
from mmsearch_trl.sokoban.picture import frame


SYSTEM = (
    "You play Sokoban. You walk up, down, left and right, and push a box by walking into it; boxes cannot be pulled, "
    "and only one can be pushed at a time. A level is solved when every box stands on a target. Think first, then "
    "name all moves at once: <think> your reasoning </think><answer> your moves </answer>"
)
USER = (
    "This is the level: you are the blue disc, boxes are crates, targets are red rings, and a crate on a target is "
    f"green. Solve it in at most {MOST_MOVES} moves, as words with commas between them, such as "
    "<answer>left, up, up, right</answer>."
)


def write_levels(out: Path, kind: str, count: int, seed: int) -> Path:
    """Write so many different levels to a new or empty folder; returns the data file.

    Args:
        kind: Of `generator.SIZES`.

    Raises:
        UserError: the kind is unknown, the number is not positive, or the folder holds something or cannot be written.
    """
    if kind not in SIZES:
        raise UserError(f"--kind {kind}: it is one of {', '.join(SIZES)}")
    if count < 1:
        raise UserError(f"--levels {count}: it must be 1 or more")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already: name a new folder")
    file = out / "levels.jsonl"
    with writing(out):
        (out / "frames").mkdir(parents=True, exist_ok=True)
        with file.open("w", encoding="utf-8") as lines:
            for row in _rows(out, kind, count, seed):
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    return file


def _rows(out: Path, kind: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    for number, solved in enumerate(islice(levels(SIZES[kind], seed), count)):
        picture = f"frames/{number:06d}.png"
        frame(solved.level.fixed, solved.level.start).save(out / picture)
        yield _row(solved.level, picture, f"sokoban-{kind}", f"sokoban-{kind}-{seed}-{number}")


def _row(level: Level, picture: str, source: str, name: str) -> dict[str, Any]:
    shown = [{"type": "image", "image": picture}, {"type": "text", "text": USER}]
    return {
        "id": name,
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": shown}],
        "answer": "",
        "data_source": source,
        "level": level.written(),
    }
