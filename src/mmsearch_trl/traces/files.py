"""Trace files: `traces/<split>-rank<r>.jsonl`, one writer per file, read together as one run.

Lines are appended and flushed batch by batch. A run that was killed may leave half a line behind: the next writer cuts
it off, and a reader passes over it with a warning; a broken line anywhere else is an error.
"""

import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from mmsearch_trl.core.boundaries import reading, writing
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.reward import ScoredTrajectory
from mmsearch_trl.traces.build import images_of, trace_record
from mmsearch_trl.traces.images import ImageStore
from mmsearch_trl.traces.records import TraceRecord
from mmsearch_trl.traces.tokens import Decoder, TokenSpeller


TRAIN = "train"
"""The split of rollouts that are trained on; all others are evaluations."""

_BLOCK = 1 << 16
_FILE = re.compile(r"(.+)-rank\d+\.jsonl")

logger = logging.getLogger(__name__)


def trace_path(run_dir: Path, split: str, rank: int = 0) -> Path:
    """Where a process writes the traces of a split."""
    return run_dir / "traces" / f"{split}-rank{rank}.jsonl"


def image_store(run_dir: Path) -> ImageStore:
    return ImageStore(run_dir / "traces" / "images")


class TraceWriter:
    """Appends the trajectories of one process to one file, their images to `images/` beside it.

    Raises:
        UserError: from any of its methods, when the file cannot be written.
    """

    def __init__(self, path: Path, tokenizer: Decoder) -> None:
        """Open `path` for appending, its folder made if need be."""
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            cut_torn_line(path)
            self._file = path.open("ab", buffering=0)  # a buffer would write later what could not be written now
        self.path = path
        self._images = ImageStore(path.parent / "images")
        self._spell = TokenSpeller(tokenizer)

    def write(self, batch: Iterable[ScoredTrajectory], *, step: int, split: str = "train") -> None:
        """Append a batch, whole or not at all; an image is on disk before a line names it."""
        lines, size = [], self.size
        with writing(self.path):
            for scored in batch:
                line = trace_record(scored, self._spell, step=step, split=split).to_json()
                for digest, image in images_of(scored.trajectory):
                    self._images.put(digest, image)
                lines.append(line.encode("ascii") + b"\n")
            left = memoryview(b"".join(lines))
            try:
                while left:  # where the disk is nearly full, a part is written
                    left = left[self._file.write(left) :]
            except OSError:
                os.truncate(self.path, size)
                raise

    def forget_from(self, step: int) -> None:
        """Drop what was sampled at `step` or later: a run that resumes from a checkpoint samples it again."""
        self._file.close()
        _forget(self.path, step)
        with writing(self.path):
            self._file = self.path.open("ab", buffering=0)

    @property
    def size(self) -> int:
        """Bytes of the file, up to the end of its last line."""
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        with writing(self.path):
            self._file.close()

    def __enter__(self) -> "TraceWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def trace_files(run_dir: Path) -> list[Path]:
    """The trace files of a run, by name.

    Raises:
        UserError: the run has none.
    """
    files = sorted((run_dir / "traces").glob("*.jsonl"))
    if not files:
        raise UserError(f"{run_dir / 'traces'} holds no *.jsonl: give the folder of a run that writes traces")
    return files


def forget_traces(run_dir: Path, split: str, step: int) -> bool:
    """Drop what any process wrote of a split at `step` or later; steps never fall within a file.

    Returns whether there was any.
    """
    dropped = False
    for path in _files_of(run_dir, split):
        with writing(path):
            cut_torn_line(path)
            last = _last_line(path)
        if last and TraceRecord.from_json(last).step >= step:
            _forget(path, step)
            dropped = True
    return dropped


def forget_steps_from(run_dir: Path, step: int) -> list[str]:
    """Drop what a run that goes on from a checkpoint of `step` records again: its rollouts from there on, and what
    evaluations recorded at later steps; of every process that ever wrote to the folder.

    Returns the splits of which there was any.
    """
    matches = [_FILE.fullmatch(path.name) for path in (run_dir / "traces").glob("*.jsonl")]
    splits = sorted({match[1] for match in matches if match is not None})
    return [split for split in splits if forget_traces(run_dir, split, step if split == TRAIN else step + 1)]


def cut_traces(path: Path, size: int) -> None:
    """Drop what was appended to a trace file after it had `size` bytes."""
    if path.exists() and path.stat().st_size > size:
        with writing(path):
            os.truncate(path, size)


def read_traces(run_dir: Path) -> Iterator[TraceRecord]:
    """Yield every record of a run, file by file, in the order written.

    Raises:
        UserError: the run has no traces, or a line is not a record; the message names file and line.
    """
    for path in trace_files(run_dir):
        yield from read_trace_file(path)


def read_trace_file(path: Path) -> Iterator[TraceRecord]:
    """Yield the records of one file; see `read_traces`."""
    with reading(path), path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                logger.warning("%s, line %d: passed over, the run ended while it was written", path, number)
                return
            try:
                record = TraceRecord.from_json(line)
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}") from error
            yield record


def _files_of(run_dir: Path, split: str) -> list[Path]:
    files = ((path, _FILE.fullmatch(path.name)) for path in (run_dir / "traces").glob("*.jsonl"))
    return sorted(path for path, match in files if match is not None and match[1] == split)


def _forget(path: Path, step: int) -> None:
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    with writing(aside):
        with aside.open("wb") as kept:
            for record in read_trace_file(path):
                if record.step < step:
                    kept.write(record.to_json().encode("ascii") + b"\n")
        aside.replace(path)


def _last_line(path: Path) -> bytes:
    """The last line, searched for from the back; empty where there is none."""
    with path.open("rb") as file:
        end, length = file.seek(0, os.SEEK_END), _BLOCK
        while True:
            start = file.seek(max(0, end - length))
            lines = file.read().splitlines()
            if len(lines) > 1 or start == 0:
                return lines[-1] if lines else b""
            length *= 2


def cut_torn_line(path: Path) -> None:
    """Drop what follows the last line end, searched for from the back: a trace file may be gigabytes."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = position = file.seek(0, os.SEEK_END)
        while position > 0:
            start = max(0, position - _BLOCK)
            file.seek(start)
            line_end = file.read(position - start).rfind(b"\n")
            if line_end >= 0:
                position = start + line_end + 1
                break
            position = start
        if position < end:
            file.truncate(position)
