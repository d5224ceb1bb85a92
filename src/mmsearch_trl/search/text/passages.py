"""The passages of an index beside their vectors: lines of a file that is read where they are asked for."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mmsearch_trl.search.index.folder import opening


_LINES, _PLACES = "passages.jsonl", "places.npy"

Passage = tuple[str, str, str | None, str | None]
"""Title, text, address, id."""


def contents(title: str, text: str) -> str:
    """Title and text as one, as Search-R1's corpora hold them: the title is the first line.

    A text of one line without title stands alone, a longer one under an empty line: its first line is no title.
    """
    if not title and "\n" not in text:
        return text
    newline = "\r\n" if "\r\n" in text else "\n"
    return f"{one_line(title)}{newline}{text}"


def title_and_text(contents: str) -> tuple[str, str]:
    """The two of which `contents` made one; a single line is a text."""
    title, newline, text = contents.partition("\n")
    return (one_line(title), text) if newline else ("", contents)


def one_line(title: str) -> str:
    """The title without line breaks, which would end it."""
    return " ".join(line for line in re.split("[\r\n]+", title) if line)


class Passages:
    """Passages by their number. Any thread may read; nothing is held in memory but their places.

    Raises:
        UserError: there are none in `folder`.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / _LINES
        with opening(folder):
            self._places = np.load(folder / _PLACES, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._places) - 1

    def read(self, numbers: Sequence[int]) -> list[Passage]:
        """The passages with these numbers, in their order."""
        found = []
        with self._file.open("rb") as lines:
            for number in numbers:
                start, end = (int(self._places[number + more]) for more in (0, 1))
                lines.seek(start)
                found.append(tuple(json.loads(lines.read(end - start))))
        return found


def write_passages(passages: Iterable[Passage], folder: Path) -> int:
    """Write passages where `Passages` finds them; how many there were."""
    places = [0]
    with (folder / _LINES).open("wb") as lines:
        for passage in passages:
            places.append(places[-1] + lines.write(json.dumps(passage).encode() + b"\n"))
    np.save(folder / _PLACES, np.asarray(places, dtype=np.uint64))
    return len(places) - 1
