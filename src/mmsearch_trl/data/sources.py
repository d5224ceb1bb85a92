"""What an entry of `train_files` and `eval_files` names, and its rows, whatever holds them.

mydata/train.jsonl            a file: .jsonl, .json, .csv, .tsv, .parquet, .pq, .arrow
mydata                        a folder: with one .jsonl file, written by `save_to_disk`, or laid out as on the Hub
owner/name                    a data set on the Hub
owner/name@folder:test[:100]  of one folder of it, a split or a part of one
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsearch_trl.core.boundaries import reading
from mmsearch_trl.core.errors import UserError, shortened
from mmsearch_trl.data.cells import Cells
from mmsearch_trl.data.csv_file import read_csv
from mmsearch_trl.data.json_file import read_json, read_json_lines
from mmsearch_trl.data.parquet import count_stored, read_stored


_READERS: Mapping[str, Callable[[Path], Iterator[Cells]]] = {
    ".jsonl": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_stored,
    ".pq": read_stored,
    ".arrow": read_stored,
}
_TEXT = (".jsonl", ".json", ".csv", ".tsv")
_SAVED = ("state.json", "dataset_dict.json")
_SPLIT = re.compile(r"(?P<name>.+):(?P<split>[\w.-]+(?:\[[\w:%-]*\])?)")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """
    Attributes:
        text: As the recipe names it.
        path: A file or a folder; None on the Hub.
        name: On the Hub.
        data_dir: A folder of a data set on the Hub or laid out so.
        streaming: Of such a data set: read rows as they arrive.
    """

    text: str
    path: Path | None = None
    name: str = ""
    data_dir: str | None = None
    split: str | None = None
    streaming: bool = False

    @property
    def stem(self) -> str:
        """What results and rows without an id are named by."""
        return self.path.stem if self.path is not None and self.path.is_file() else data_name(self.text)

    @property
    def folder(self) -> Path:
        """Where paths of images start."""
        if self.path is None:
            return Path()
        return self.path.parent if self.path.is_file() else self.path

    @property
    def is_text(self) -> bool:
        """Whether it is small enough to be read at each start, to see whether the images that it names changed."""
        return self.path is not None and self.path.suffix in _TEXT

    @property
    def has_keys(self) -> bool:
        """Whether each row has keys of its own, rather than the columns of a table."""
        return self.path is not None and self.path.suffix in (".jsonl", ".json")


def find_source(text: str | Path, *, streaming: bool = False) -> Source:
    """What an entry names; the Hub is not asked.

    Raises:
        UserError: it names no file or folder that is there, and can be no name on the Hub.
    """
    text = str(text)
    if Path(text).exists():
        return _local(text, Path(text), None, None, streaming=streaming)
    base, split = (match["name"], match["split"]) if (match := _SPLIT.fullmatch(text)) else (text, None)
    name, _, data_dir = base.partition("@")
    if Path(base).is_file():
        raise UserError(f"{base} is a file, which has no splits: leave out `:{split}`")
    if Path(base).is_dir():
        return _local(text, Path(base), split, None, streaming=streaming)
    if Path(name).is_dir():
        return _local(text, Path(name), split, data_dir, streaming=streaming)
    if Path(name).suffix in _READERS or not _HUB_NAME.fullmatch(name):
        raise UserError(f"data file not found: {text}")
    return Source(text=text, name=name, data_dir=data_dir or None, split=split, streaming=streaming)


def data_name(text: str) -> str:
    """The name by which results on an entry go: `geometry3k-test` of `hiyouga/geometry3k:test`."""
    if Path(text).suffix in _READERS:
        return Path(text).stem
    base, split = (match["name"], match["split"]) if (match := _SPLIT.fullmatch(text)) else (text, "")
    name, _, data_dir = base.partition("@")
    parts = (Path(name).name, data_dir, split)
    return re.sub(r"[^\w.-]+", "-", "-".join(part for part in parts if part)).strip("-")


def _local(text: str, path: Path, split: str | None, data_dir: str | None, *, streaming: bool) -> Source:
    if not path.is_dir():
        if path.suffix not in _READERS:
            kinds = ", ".join(_READERS)
            raise UserError(f"{path}: expected a file {kinds}, a folder of data, or a data set on the Hub")
        return Source(text=text, path=path)
    if not _is_saved(path):
        lines = sorted(path.glob("*.jsonl"))
        others = [file for ending in _READERS if ending != ".jsonl" for file in path.rglob(f"*{ending}")]
        if lines and split is None and data_dir is None:
            return Source(text=text, path=_only_one(path, lines))
        if not lines and not others:
            names = shortened(", ".join(sorted(each.name for each in path.iterdir())), 300) or "nothing"
            raise UserError(f"{path}: the folder holds no data file, found {names}")
    return Source(text=text, path=path, data_dir=data_dir or None, split=split, streaming=streaming)


def _only_one(folder: Path, lines: list[Path]) -> Path:
    if len(lines) != 1:
        names = shortened(", ".join(file.name for file in lines), 300)
        raise UserError(
            f"{folder}: a data folder holds exactly one .jsonl file, found {names}; name the file itself, or a split, "
            f"as {folder}:train"
        )
    return lines[0]


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _SAVED)


def read_cells(source: Source) -> Iterator[Cells]:
    """The rows of a source in order, images not opened.

    Raises:
        UserError: it cannot be read, as a whole or from some row on.
    """
    if source.path is not None and source.path.is_file():
        return _READERS[source.path.suffix](source.path)
    from mmsearch_trl.data.hub_rows import stored_cells  # takes a second to import

    return stored_cells(str(source.path or source.name), _kept_rows(source))


def count_rows(source: Source) -> int | None:
    """Rows, bad ones included, without reading what they hold; None where only reading tells.

    Raises:
        UserError: it cannot be read.
    """
    path = source.path
    if path is None or not path.is_file():
        return None if source.streaming else len(_kept_rows(source))
    if path.suffix == ".jsonl":
        with reading(path), path.open("rb") as lines:
            return sum(1 for line in lines if line.strip())
    if source.is_text:
        return sum(1 for _ in read_cells(source))
    return count_stored(path)


def stamp(source: Source) -> list[Any]:
    """Changes whenever the source may have changed."""
    if source.path is not None and (source.path.is_file() or _is_saved(source.path)):
        files = [source.path] if source.path.is_file() else sorted(each for each in source.path.rglob("*.*"))
        return [source.split, *map(file_stamp, files)]
    from mmsearch_trl.data.hub_rows import hub_stamp

    return [hub_stamp(str(source.path or source.name), source.data_dir), source.data_dir, source.split]


def file_stamp(path: Path) -> tuple[str, int, int]:
    """
    Raises:
        UserError: the file cannot be looked at.
    """
    with reading(path):
        found = path.stat()
    return str(path.resolve()), found.st_size, found.st_mtime_ns


def _kept_rows(source: Source) -> Any:
    from mmsearch_trl.data.hub_rows import hub_rows, saved_rows

    if source.path is not None and _is_saved(source.path):
        if source.data_dir is not None:
            raise UserError(f"{source.text}: what `save_to_disk` wrote has no folders to name behind @")
        return saved_rows(source.path, source.split)
    name = str(source.path or source.name)
    return hub_rows(name, source.data_dir, source.split, streaming=source.streaming)
