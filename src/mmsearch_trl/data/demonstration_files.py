"""Files of demonstrations: lines are found by their offset and read when asked for, so that nothing is kept in memory.

Conversations (`demonstrations.py`) and traces (`demonstrations_from_traces.py`) may be mixed. Of traces, only those
with a right answer count.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.json_lines import Line, read_line, read_lines
from mmsearch_trl.core.task import Task
from mmsearch_trl.data.demonstrations import Demonstration, read_conversation
from mmsearch_trl.data.demonstrations_from_traces import TraceReader
from mmsearch_trl.data.rows import RowError
from mmsearch_trl.traces.records import TraceRecord


def holds_traces(file: str) -> bool:
    """Whether the first line of a file that can be read is a trace."""
    path = Path(file)
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    for line in read_lines(path):
        try:
            return _is_trace(line.object())
        except UserError:
            continue
    return False


class DemonstrationFile:
    """A sequence of the usable demonstrations of one `.jsonl` file.

    Args:
        original: Finds a trace's question in its data file by id, or returns None.

    Raises:
        UserError: the file is missing or holds no usable line.
    """

    def __init__(self, path: Path, original: Callable[[str], Task | None] = lambda task_id: None) -> None:
        if path.suffix != ".jsonl" or not path.is_file():
            raise UserError(f"{path}: demonstrations are read from a .jsonl file, and this is none")
        self.path = path
        self.wrong = 0
        """Traces that were left out, because their answer was wrong or nobody judged it."""
        self._original = original
        self._traces = TraceReader.beside(path)
        self._lines = list(self._scan())
        if not self._lines:
            raise UserError(f"{path}: no demonstration is left ({self.wrong} traces without a right answer)")

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Demonstration:
        """Read one demonstration.

        Raises:
            RowError: it cannot be used; names file and line.
        """
        number, offset = self._lines[index]
        line = read_line(self.path, number, offset)
        try:
            row = line.object()
            if not _is_trace(row):
                return read_conversation(row, self.path.parent, f"{self.path.stem}-{number}")
            record = TraceRecord.from_json(line.raw)
            return self._traces.demonstration(record, self._original(record.id))
        except UserError as error:
            raise self.error(index, str(error)) from error

    def error(self, index: int, reason: str) -> RowError:
        """What is wrong with a demonstration, with its place."""
        return RowError(self.path, f"line {self._lines[index][0]}", reason)

    def _scan(self) -> Iterator[tuple[int, int]]:
        """Number (from 1) and offset of every line that counts; what is wrong with one is told when it is read."""
        for line in read_lines(self.path):
            if _is_right(line):
                yield line.number, line.offset
            else:
                self.wrong += 1


def _is_right(line: Line) -> bool:
    """Whether a line is anything but a trace whose answer was wrong."""
    try:
        row = line.object()
    except UserError:
        return True
    return not _is_trace(row) or bool(row["outcome"].get("right"))


def _is_trace(row: dict[str, Any]) -> bool:
    return isinstance(row.get("outcome"), dict)
