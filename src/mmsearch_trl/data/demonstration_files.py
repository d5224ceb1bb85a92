"""Files of demonstrations: lines are found by their offset and read when asked for, so that nothing is kept in memory.

Conversations (`demonstrations.py`) and traces (`demonstrations_from_traces.py`) may be mixed. Of traces, only those
with a right answer count.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmsearch_trl.core.boundaries import reading
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.task import Task
from mmsearch_trl.data.demonstrations import Demonstration, read_conversation
from mmsearch_trl.data.demonstrations_from_traces import TraceReader
from mmsearch_trl.data.plain import json_object
from mmsearch_trl.data.rows import RowError
from mmsearch_trl.traces.records import TraceRecord


class DemonstrationFile:
    """A sequence of the usable demonstrations of one `.jsonl` file.

    Args:
        original: Finds a trace's question in its data file by id, or returns None.

    Raises:
        UserError: the file is missing or holds no usable line.
        RowError: a line is no JSON object.
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
        with reading(self.path), self.path.open("rb") as file:
            file.seek(offset)
            line = file.readline()
        try:
            row = json_object(line)
            if not _is_trace(row):
                return read_conversation(row, self.path.parent, f"{self.path.stem}-{number}")
            record = TraceRecord.from_json(line)
            return self._traces.demonstration(record, self._original(record.id))
        except UserError as error:
            raise self.error(index, str(error)) from error

    def error(self, index: int, reason: str) -> RowError:
        """What is wrong with a demonstration, with its place."""
        return RowError(self.path, f"line {self._lines[index][0]}", reason)

    def _scan(self) -> Iterator[tuple[int, int]]:
        """Number (from 1) and offset of every line that counts."""
        offset = 0
        with reading(self.path), self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    row = self._parsed(line, number)
                    if not _is_trace(row) or row["outcome"].get("right"):
                        yield number, offset
                    else:
                        self.wrong += 1
                offset += len(line)

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            return json_object(line)
        except UserError as error:
            raise RowError(self.path, f"line {number}", str(error)) from error


def _is_trace(row: dict[str, Any]) -> bool:
    return isinstance(row.get("outcome"), dict)
