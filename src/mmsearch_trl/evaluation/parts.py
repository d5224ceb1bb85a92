"""What an evaluation under way has on disk: a line per row that has ended, in a file per process.

Files begin with a header that identifies the evaluation. The one that finds files of its own header goes on from them,
with any number of processes; files of another are those of an evaluation that nobody will finish, and go. A file that
was cut off in the middle of a line loses that line.

Processes on machines without a common disk each see the files of their own machine; at the end the lines that rank 0
does not see are sent to it, some at a time.

Memory is that of a byte a row, and of two numbers a row on rank 0 at the end: no line is kept.
"""

import json
import shutil
from array import array
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from mmsearch_trl.core.boundaries import writing
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.evaluation.measures import Measures
from mmsearch_trl.traces.files import cut_torn_line, cut_traces, forget_traces, trace_path


_LINES_AT_A_TIME = 64
_ROWS_IN_DOUBT = 200
"""So many rows before the end of an evaluation that could not go on may be those of its failure."""
_BEFORE_NUMBER = b'{"number": '


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A row that has ended.

    Attributes:
        number: In the data set.
        row: As it will be saved.
        traces_size: Bytes of this process's trace file when the row was written.
    """

    number: int
    row: dict[str, Any]
    measures: Measures
    traces_size: int

    def to_line(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=True).encode("ascii") + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Part":
        fields = json.loads(line)
        return cls(**(fields | {"measures": Measures(**fields["measures"])}))


class Parts:
    """The files of one evaluation; all ranks make it, and call its methods, alike.

    Args:
        folder: For the files alone.
        header: Identifies the evaluation.
        count: Rows of the data set.
    """

    def __init__(self, folder: Path, header: str, count: int, ranks: Ranks) -> None:
        self.folder = folder
        self._header = header
        self._count = count
        self._ranks = ranks

    def open(self, run_dir: Path, split: str, step: int) -> bytearray:
        """Take up what an interrupted evaluation left, or begin anew; 1 for every row that was done already.

        The traces of the split are brought in step with the files: those of rows that will be rolled out (again) go.

        Args:
            run_dir: Where `traces/` lies.
        """
        if self._ranks.is_local_main:
            for path in self._files():
                with writing(path):
                    cut_torn_line(path)
                if path.stat().st_size == 0 or _header(path)["evaluation"] != self._header:
                    path.unlink(missing_ok=True)
            if found := self._files():
                for path in found:
                    self._cut_traces(path, run_dir, split)
            else:
                forget_traces(run_dir, split, step)
        self._ranks.any(False)  # nobody reads before, and nobody writes
        done = self._done()
        gathered = self._ranks.gather(torch.frombuffer(done, dtype=torch.uint8)[None])
        return bytearray(gathered.amax(dim=0).cpu().numpy().tobytes())

    def writer(self, traces_size: int) -> "PartWriter":
        """This process's file, for appending.

        Args:
            traces_size: Bytes of its trace file.
        """
        header = {"evaluation": self._header, "traces_size": traces_size}
        return PartWriter(self.folder / f"rank{self._ranks.index}.jsonl", header)

    def gather(self) -> None:
        """Have rank 0 see every line."""
        seen = self._ranks.on_main(lambda: bytes(self._done()))
        lines = self._lines() if self._ranks.is_local_main else iter(())
        unseen = (line for _, _, line, number in lines if not seen[number])
        while sent := self._ranks.gather_objects(list(islice(unseen, _LINES_AT_A_TIME))):
            if self._ranks.is_main:
                with PartWriter(self.folder / "received.jsonl", {"evaluation": self._header}) as received:
                    received.write(b"".join(sent))

    def in_order(self) -> Iterator[Part]:
        """Every row, by its number; on rank 0, after `gather`.

        Raises:
            RuntimeError: a row is missing.
        """
        files = self._files()
        file_of, offset_of = array("i", [-1]) * self._count, array("q", [0]) * self._count
        for path, offset, _, number in self._lines():
            file_of[number], offset_of[number] = files.index(path), offset
        opened = [path.open("rb") for path in files]
        try:
            for number, (file, offset) in enumerate(zip(file_of, offset_of, strict=True)):
                if file < 0:
                    raise RuntimeError(f"{self.folder}: row {number} is missing")
                opened[file].seek(offset)
                yield Part.from_line(opened[file].readline())
        finally:
            for file in opened:
                file.close()

    def remove(self) -> None:
        self._ranks.any(False)  # rank 0 has read them
        if self._ranks.is_local_main:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.jsonl"))

    def _cut_traces(self, path: Path, run_dir: Path, split: str) -> None:
        """Cut the trace of a row that has no line: its process was killed between the two."""
        rank = path.stem.removeprefix("rank")
        if not rank.isdigit():
            return
        size = _header(path)["traces_size"]
        for _, _, line, _ in self._lines(path):
            size = Part.from_line(line).traces_size
        cut_traces(trace_path(run_dir, split, int(rank)), size)

    def _done(self) -> bytearray:
        done = bytearray(self._count)
        for _, _, _, number in self._lines():
            done[number] = 1
        return done

    def _lines(self, *only: Path) -> Iterator[tuple[Path, int, bytes, int]]:
        """File, offset, line and row number of each line."""
        for path in only or self._files():
            with path.open("rb") as file:
                offset = len(file.readline())
                for line in file:
                    yield path, offset, line, int(line[len(_BEFORE_NUMBER) : line.index(b",")])
                    offset += len(line)


class PartWriter:
    """Appends lines to one file; what was written outlives the process.

    Args:
        header: The first line of a new file.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self._path = path
        self._spoiled: deque[int | None] = deque(maxlen=_ROWS_IN_DOUBT)
        """Where the newest rows begin that something spoiled; None for one that nothing did."""
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
        if self._file.tell() == 0:
            self.write(json.dumps(header).encode("ascii") + b"\n")

    def write(self, lines: bytes) -> None:
        with writing(self._path):
            self._file.write(lines)
            self._file.flush()

    def write_row(self, line: bytes, *, spoiled: bool) -> None:
        """
        Args:
            spoiled: Something failed in it through no fault of the policy.
        """
        self._spoiled.append(self._file.tell() if spoiled else None)
        self.write(line)

    def cut_spoiled(self) -> None:
        """Leave out the newest rows, from the first on that was spoiled: who goes on evaluates them again."""
        if (begin := next((place for place in self._spoiled if place is not None), None)) is not None:
            with writing(self._path):
                self._file.truncate(begin)

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return json.loads(file.readline())
