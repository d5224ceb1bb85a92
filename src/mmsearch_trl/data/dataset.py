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
from itertools import islice
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
from mmsearch_trl.data.image_cells import ImageAddress, PlainImage, unbounded
from mmsearch_trl.data.images import load_prompt_image, resize_prompt_image
from mmsearch_trl.data.pixels import resized
from mmsearch_trl.data.reading import AS_IT_IS, Reading
from mmsearch_trl.data.rows import OnError, Row, RowError, SkippedRows, accepted
from mmsearch_trl.data.sources import Source, file_stamp, find_source, stamp
from mmsearch_trl.data.tasks import read_rows, ready_rows
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
"""`images` are encoded, `image_sizes` the `(width, height)` in pixels to which each is brought, `extra` is JSON.
`messages` are those of `Task`, `prompt` the same as reward functions see them."""

_FORMAT = 4  # part of the digest: raise it when rows are written differently
_ROWS_AT_A_TIME = 32


def load_dataset_rows(
    paths: str | Path | Sequence[str | Path],
    *,
    reading: Reading = AS_IT_IS,
    on_error: OnError = "raise",
    cache_dir: str | Path | None = None,
    skipped: SkippedRows | None = None,
) -> datasets.Dataset:
    """One memory-mapped dataset (`FEATURES`) of all rows of the files, in order.

    Args:
        paths: What `find_source` understands.
        on_error: `"raise"` stops at the first bad row; `"skip"` leaves bad rows out and logs their number.
        cache_dir: Where the Arrow file goes; None for the cache of `datasets`.
        skipped: Filled with the rows that were left out, also where the Arrow file was there already.

    Raises:
        UserError: a file cannot be used, or no row is left.
        RowError: a row cannot be used (`on_error="raise"`).
    """
    named = [paths] if isinstance(paths, str | Path) else paths
    sources = [find_source(path, streaming=reading.streaming) for path in named]
    skipped = SkippedRows() if skipped is None else skipped
    folder = Path(cache_dir or Path(datasets_config.HF_DATASETS_CACHE) / "mmsearch_trl")
    target = folder / f"{_digest(sources, reading, on_error)}.arrow"
    report = target.with_suffix(".skipped.json")
    with writing(folder):  # data files that cannot be read say so themselves
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.exists():
                _write(sources, reading, on_error, skipped, target, report)
            else:
                skipped.errors += [RowError(Path(path), place, reason) for path, place, reason in _read_json(report)]
    dataset = datasets.Dataset.from_file(str(target))
    skipped.log(len(dataset))
    if len(dataset) == 0:
        raise UserError(f"{', '.join(map(str, named))}: no usable row ({len(skipped)} bad ones left out)")
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
    images = tuple(
        resized(load_prompt_image(image), size)
        for image, size in zip(row["images"], map(tuple, row["image_sizes"]), strict=True)
    )
    return _task(row, tuple(map(resize_prompt_image, images)) if resize else images)


def row_without_images(row: Mapping[str, Any], *, resize: bool = False) -> Task:
    """The task of a row with blank images of the right sizes, on which alone the number of image tokens depends."""
    images = tuple(Image.new("RGB", tuple(size)) for size in row["image_sizes"])
    return _task(row, tuple(map(resize_prompt_image, images)) if resize else images)


def drop_long_prompts(
    dataset: datasets.Dataset, count_tokens: Callable[[Task], int], max_prompt_length: int, *, resize: bool = False
) -> datasets.Dataset:
    """Leave out the rows whose first prompt has more than `max_prompt_length` tokens; their number is logged.

    `count_tokens` counts image tokens too. It sees blank images (`row_without_images`), so that none need be decoded.
    """
    # Without `images`, so that counting does not page in every image.
    rows = cast("Iterable[dict[str, Any]]", dataset.remove_columns("images"))
    kept = []
    for number, row in enumerate(tqdm(rows, desc="Counting prompt tokens", unit="row", leave=False)):
        if count_tokens(row_without_images(row, resize=resize)) <= max_prompt_length:
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
        answers=accepted_answers(
            row["answers"], verbatim=not isinstance(row["answers"], str)
        ),  # of a data set of one's own they may be a single text
        data_source=row["data_source"],
        image_url=row["image_url"],
        category=row["category"],
        extra=json.loads(row["extra"]),
    )


def _digest(sources: Sequence[Source], reading: Reading, on_error: OnError) -> str:
    """Changes whenever data, or an image that a text file names, may have changed, or is read in another way."""
    seen: list[Any] = [_FORMAT, on_error, reading.fingerprint()]
    for source in sources:
        seen += [source.text, *stamp(source)]
        if source.is_text:
            rows = (row for row in read_rows(source, reading.unchecked()) if isinstance(row, Row))
            images = (unbounded(image) for row in rows for image in row.images)
            paths = (image for image in images if isinstance(image, Path))
            seen += [file_stamp(path) for path in paths if os.path.exists(path)]  # `Path.exists` raises elsewhere
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:32]


def _write(
    sources: Sequence[Source], reading: Reading, on_error: OnError, skipped: SkippedRows, target: Path, report: Path
) -> None:
    unfinished = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        with ArrowWriter(features=FEATURES, path=str(unfinished), writer_batch_size=_ROWS_AT_A_TIME) as writer:
            for source in sources:
                for cells in islice(_checked_rows(source, reading, on_error, skipped), reading.most_rows):
                    writer.write(cells)
            writer.finalize()
        errors = [(str(error.path), error.place, error.reason) for error in skipped.errors]
        report.write_text(json.dumps(errors), encoding="utf-8")
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def _checked_rows(
    source: Source, reading: Reading, on_error: OnError, skipped: SkippedRows
) -> Iterator[dict[str, Any]]:
    path = Path(source.text)
    rows = accepted(ready_rows(source, reading), on_error, skipped)
    for row in tqdm(rows, desc=f"Reading {path.name}", unit="row", leave=False):
        try:
            yield _cells(row, reading)
        except UserError as error:
            bad = RowError(path, row.place, f"unreadable image: {error}")
            if on_error == "raise":
                raise bad from error
            skipped.errors.append(bad)


def _cells(row: Row, reading: Reading) -> dict[str, Any]:
    return {
        "prompt": shown(row.messages) or [{"role": "user", "content": row.question}],
        "id": row.id,
        "question": row.question,
        "messages": [{"role": message.role, "content": list(message.content)} for message in row.messages],
        "images": [_encoded(unbounded(image)) for image in row.images],
        "image_sizes": [reading.shown_size(load_prompt_image(image), image) for image in row.images],
        "answers": list(row.answers),
        "data_source": row.data_source,
        "category": row.category,
        "image_url": row.image_url,
        "extra": json.dumps(dict(row.extra), default=str),
    }


def _encoded(image: PlainImage) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, Path):
        with reading(image):
            return image.read_bytes()
    if isinstance(image, ImageAddress):
        raise ValueError("an image that was to be fetched was not")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
