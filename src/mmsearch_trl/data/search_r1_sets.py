"""Search-R1's training and test data from the files of FlashRAG: one `.jsonl` each, as `data/plain.py` reads them.

Training is on NQ and HotpotQA together; tests are the seven sets below, each from the first split that it has of test,
dev, train. Source: paper arXiv 2503.09516 §4.1; `scripts/data_process` of PeterGriffinJin/Search-R1.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HFValidationError
from tqdm import tqdm

from mmsearch_trl.core.boundaries import writing
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.json_lines import read_lines
from mmsearch_trl.data.answers import listed_answers
from mmsearch_trl.data.rows import text_cell


TRAINING_SETS = ("nq", "hotpotqa")
TEST_SETS = ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle")
_TEST_SPLITS = ("test", "dev", "train")


def write_search_r1_sets(out: Path, source: str) -> dict[str, int]:
    """Write `train.jsonl` and one file for each test set to the folder `out`; how many rows each has, by file name.

    Args:
        source: A data set on the Hub, or a folder with the same files, `<set>/<split>.jsonl`.

    Raises:
        UserError: a set has no file, or a line of one is no question with answers (names the file and the line); or
            a file cannot be fetched or written.
    """
    files = _Files(source)
    wanted = {"train": [(name, files.split(name, ("train",))) for name in TRAINING_SETS]}
    wanted |= {name: [(name, files.split(name, _TEST_SPLITS))] for name in TEST_SETS}
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = {}
    for target, parts in tqdm(wanted.items(), desc="Writing", unit="file"):
        count, unfinished = 0, out / f"{target}.jsonl.tmp"
        try:
            with writing(unfinished), unfinished.open("w", encoding="utf-8") as lines:
                for name, split in parts:
                    for row in _rows(name, files.path(name, split)):
                        lines.write(row)
                        count += 1
                unfinished.replace(out / f"{target}.jsonl")
        finally:
            unfinished.unlink(missing_ok=True)
        counts[f"{target}.jsonl"] = count
    return counts


class _Files:
    """`<set>/<split>.jsonl`, in a folder or on the Hub."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._folder = Path(source) if Path(source).is_dir() else None
        if self._folder is not None:
            self._names = {str(path.relative_to(self._folder)) for path in self._folder.glob("*/*.jsonl")}
        else:
            with _fetching(source):
                self._names = set(HfApi().list_repo_files(source, repo_type="dataset"))

    def split(self, name: str, splits: tuple[str, ...]) -> str:
        for split in splits:
            if f"{name}/{split}.jsonl" in self._names:
                return split
        wanted = " or ".join(f"{name}/{split}.jsonl" for split in splits)
        raise UserError(f"{self._source} has no {wanted}: FlashRAG's data sets, or a copy of them, are needed")

    def path(self, name: str, split: str) -> Path:
        file = f"{name}/{split}.jsonl"
        if self._folder is not None:
            return self._folder / file
        with _fetching(self._source):
            return Path(hf_hub_download(self._source, file, repo_type="dataset"))


@contextmanager
def _fetching(source: str) -> Iterator[None]:
    try:
        yield
    except (OSError, httpx.HTTPError, HFValidationError) as error:
        raise UserError(f"{source} is no folder, and the Hub cannot be asked for it: {error}") from error


def _rows(name: str, path: Path) -> Iterator[str]:
    for line in read_lines(path):
        try:
            row = _row(name, line.object())
        except UserError as error:
            raise UserError(f"{path}, line {line.number}: not a row of FlashRAG: {error}") from error
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _row(name: str, cells: dict[str, Any]) -> dict[str, Any]:
    missing = [key for key in ("id", "question", "golden_answers") if key not in cells]
    if missing:
        raise UserError(f"the key {missing[0]!r} is missing")
    question = cells["question"]
    if not isinstance(question, str) or not question.strip():
        raise UserError("the question is empty")
    answers = listed_answers(cells["golden_answers"])
    row_id = text_cell(cells["id"], "id")
    if row_id is None:
        raise UserError("the id is empty")
    return {"id": f"{name}-{row_id}", "question": question, "answers": answers, "data_source": name}
