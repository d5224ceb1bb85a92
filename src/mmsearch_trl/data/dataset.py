"""The training dataset: rows of several files in one memory-mapped Arrow file, images encoded.

Every image is decoded once while the file is written, so that a damaged one is found before training and not in the
middle of it, and then again each time its row is used (`row_to_task`); decoded images are never kept. The file lies in
the cache of `datasets` under a digest of the names, sizes and times of its sources, is written under another name and
renamed when complete, and is written by one process while the others wait.
"""

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import datasets
from datasets import config as datasets_config
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from mmsearch_trl.core.boundaries import reading, writing
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.message import Message, shown
from mmsearch_trl.core.task import Task
from mmsearch_trl.data.image_cells import BoundedImage, ImageSource, unbounded
from mmsearch_trl.data.images import load_prompt_image, resize_prompt_image
from mmsearch_trl.data.messages import ConversationRules
from mmsearch_trl.data.rows import OnError, Row, RowError, SkippedRows, accepted
from mmsearch_trl.data.tasks import data_file, read_rows
from mmsearch_trl.rewards.answers import accepted_answers


logger = logging.getLogger(__name__)

_TEXT = datasets.Value("string")
FEATURES = datasets.Features(
    {
        "prompt": datasets.List({"role": _TEXT, "content": _TEXT}),
        "id": _TEXT,
        "question": _TEXT,
        "messages": datasets.List({"role": _TEXT, "content": datasets.List(_TEXT)}),
        "images": datasets.List(datasets.Value("binary")),
        "image_sizes": datasets.List(datasets.List(datasets.Value("int32"))),
        "answers": datasets.List(_TEXT),
        "data_source": _TEXT,
        "category": _TEXT,
        "image_url": _TEXT,
        "extra": _TEXT,
    }
)
"""`images` are encoded, `image_sizes` their `(width, height)` in pixels when decoded, `extra` is JSON. `messages` are
those of `Task`, `prompt` the same as reward functions see them."""

_FORMAT = 3  # part of the digest: raise it when rows are written differently
_ROWS_AT_A_TIME = 32


def load_dataset_rows(
    paths: str | Path | Sequence[str | Path],
    *,
    on_error: OnError = "raise",
    cache_dir: str | Path | None = None,
    skipped: SkippedRows | None = None,
    rules: ConversationRules | None = None,
) -> datasets.Dataset:
    """One memory-mapped dataset (`FEATURES`) of all rows of the files, in order.

    Args:
        paths: Files or folders that `data_file` understands.
        on_error: `"raise"` stops at the first bad row; `"skip"` leaves bad rows out and logs their number.
        cache_dir: Where the Arrow file goes; None for the cache of `datasets`.
        skipped: Filled with the rows that were left out, also where the Arrow file was there already.
        rules: As for `read_rows`.

    Raises:
        UserError: a file cannot be used, or no row is left.
        RowError: a row cannot be used (`on_error="raise"`).
    """
    files = [data_file(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    skipped = SkippedRows() if skipped is None else skipped
    folder = Path(cache_dir or Path(datasets_config.HF_DATASETS_CACHE) / "mmsearch_trl")
    target = folder / f"{_digest(files, on_error, rules)}.arrow"
    report = target.with_suffix(".skipped.json")
    with writing(folder):  # data files that cannot be read say so themselves
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.exists():
                _write(files, on_error, skipped, rules, target, report)
            else:
                skipped.errors += [RowError(Path(path), place, reason) for path, place, reason in _read_json(report)]
    dataset = datasets.Dataset.from_file(str(target))
    skipped.log(len(dataset))
    if len(dataset) == 0:
        raise UserError(f"{', '.join(map(str, files))}: no usable row ({len(skipped)} bad ones left out)")
    return dataset


def check_without_images(dataset: datasets.Dataset, files: Sequence[str]) -> None:
    """
    Raises:
        UserError: a question has an image, which a language model cannot be shown; names the row.
    """
    rows = cast("Iterable[dict[str, Any]]", dataset.select_columns(["id", "image_sizes"]))
    for row in rows:
        if row["image_sizes"]:
            raise UserError(
                f"{', '.join(files)}: question {row['id']} has an image, and the model is a language model: name a "
                "vision-language model, or data without images"
            )


def has_images(dataset: datasets.Dataset) -> bool:
    """Whether a question has one."""
    return any(cast("Iterable[list[Any]]", dataset["image_sizes"]))


def row_to_task(row: Mapping[str, Any], *, resize: bool = False) -> Task:
    """The task of one dataset row; its images are decoded now, and resized as MMSearch-R1 does if `resize`."""
    images = tuple(load_prompt_image(image) for image in row["images"])
    return _task(row, tuple(map(resize_prompt_image, images)) if resize else images)


def drop_long_prompts(
    dataset: datasets.Dataset, count_tokens: Callable[[Task], int], max_prompt_length: int, *, resize: bool = False
) -> datasets.Dataset:
    """Leave out the rows whose first prompt has more than `max_prompt_length` tokens; their number is logged.

    `count_tokens` counts image tokens too. It sees blank images of the right sizes, on which alone the number of
    image tokens depends, so that no image need be decoded.
    """
    # Without `images`, so that counting does not page in every image.
    rows = cast("Iterable[dict[str, Any]]", dataset.remove_columns("images"))
    kept = []
    for number, row in enumerate(tqdm(rows, desc="Counting prompt tokens", unit="row", leave=False)):
        images = tuple(Image.new("RGB", tuple(size)) for size in row["image_sizes"])
        task = _task(row, tuple(map(resize_prompt_image, images)) if resize else images)
        if count_tokens(task) <= max_prompt_length:
            kept.append(number)
    dropped = len(dataset) - len(kept)
    if not kept:
        raise UserError(
            f"all {dropped} prompts are longer than max_prompt_length {max_prompt_length} tokens; raise it"
        )
    if dropped:
        logger.warning("dropped %d of %d rows: prompt over %d tokens", dropped, len(dataset), max_prompt_length)
    return dataset.select(kept)


def _task(row: Mapping[str, Any], images: tuple[Image.Image, ...]) -> Task:
    return Task(
        id=row["id"],
        question=row["question"],
        images=images,
        messages=tuple(Message(each["role"], tuple(each["content"])) for each in row.get("messages") or ()),
        answers=accepted_answers(row["answers"]),  # of a data set of one's own they may be a single text
        data_source=row["data_source"],
        image_url=row["image_url"],
        category=row["category"],
        extra=json.loads(row["extra"]),
    )


def _digest(files: Sequence[Path], on_error: OnError, rules: ConversationRules | None) -> str:
    """Changes whenever a data file, or an image that a `.jsonl` file names, may have changed."""
    seen: list[Any] = [_FORMAT, on_error, rules.fingerprint if rules is not None else None]
    for file in files:
        parts = [file]
        if file.suffix == ".jsonl":
            unchecked = None if rules is None else replace(rules, check=lambda messages: None)
            rows = (row for row in read_rows(file, unchecked) if isinstance(row, Row))
            sources = (unbounded(image) for row in rows for image in row.images)
            paths = (image for image in sources if isinstance(image, Path))
            parts += [path for path in paths if os.path.exists(path)]  # `Path.exists` raises where it may not look
        seen += [(str(part.resolve()), part.stat().st_size, part.stat().st_mtime_ns) for part in parts]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:32]


def _write(
    files: Sequence[Path],
    on_error: OnError,
    skipped: SkippedRows,
    rules: ConversationRules | None,
    target: Path,
    report: Path,
) -> None:
    unfinished = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        with ArrowWriter(features=FEATURES, path=str(unfinished), writer_batch_size=_ROWS_AT_A_TIME) as writer:
            for file in files:
                for cells in _checked_rows(file, on_error, skipped, rules):
                    writer.write(cells)
            writer.finalize()
        errors = [(str(error.path), error.place, error.reason) for error in skipped.errors]
        report.write_text(json.dumps(errors), encoding="utf-8")
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def _checked_rows(
    file: Path, on_error: OnError, skipped: SkippedRows, rules: ConversationRules | None
) -> Iterator[dict[str, Any]]:
    rows = accepted(read_rows(file, rules), on_error, skipped)
    for row in tqdm(rows, desc=f"Reading {file.name}", unit="row", leave=False):
        try:
            yield _cells(row)
        except UserError as error:
            bad = RowError(file, row.place, f"unreadable image: {error}")
            if on_error == "raise":
                raise bad from error
            skipped.errors.append(bad)


def _cells(row: Row) -> dict[str, Any]:
    return {
        "prompt": shown(row.messages) or [{"role": "user", "content": row.question}],
        "id": row.id,
        "question": row.question,
        "messages": [{"role": message.role, "content": list(message.content)} for message in row.messages],
        "images": [_encoded(image) for image in row.images],
        "image_sizes": [load_prompt_image(image).size for image in row.images],
        "answers": list(row.answers),
        "data_source": row.data_source,
        "category": row.category,
        "image_url": row.image_url,
        "extra": json.dumps(dict(row.extra), default=str),
    }


def _encoded(image: ImageSource) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, Path):
        with reading(image):
            return image.read_bytes()
    if isinstance(image, BoundedImage):
        image = load_prompt_image(image)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
