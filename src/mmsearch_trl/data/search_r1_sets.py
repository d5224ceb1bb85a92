"""Search-R1's training and test data from the files of FlashRAG: one `.jsonl` each, as `data/plain.py` reads them.

Training is on NQ and HotpotQA together; tests are the seven sets below, each from the first split that it has of test,
dev, train. Source: paper arXiv 2503.09516 §4.1; `scripts/data_process` of PeterGriffinJin/Search-R1.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
from huggingface_hub import HfApi, hf_hub_download
from tqdm import tqdm

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.rows import DataError, gold_answers


TRAINING_SETS = ("nq", "hotpotqa")
TEST_SETS = ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle")
_TEST_SPLITS = ("test", "dev", "train")


def write_search_r1_sets(out: Path, source: str) -> dict[str, int]:
    """Write `train.jsonl` and one file for each test set to the folder `out`; how many rows each has, by file name.

    Args:
        source: A data set on the Hub, or a folder with the same files, `<set>/<split>.jsonl`.

    Raises:
        DataError: a set has no file, or a line of one is no question with answers; names the file and the line.
        OSError: a file cannot be fetched or written.
    """
    files = _Files(source)
    wanted = {"train": [(name, files.split(name, ("train",))) for name in TRAINING_SETS]}
    wanted |= {name: [(name, files.split(name, _TEST_SPLITS))] for name in TEST_SETS}
    out.mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = {}
    for target, parts in tqdm(wanted.items(), desc="Writing", unit="file"):
        count, unfinished = 0, out / f"{target}.jsonl.tmp"
        try:
            with unfinished.open("w", encoding="utf-8") as lines:
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
            try:
                self._names = set(HfApi().list_repo_files(source, repo_type="dataset"))
            except (OSError, httpx.HTTPError) as error:
                raise DataError(f"{source} is no folder, and the Hub cannot be asked for it: {error}") from error

    def split(self, name: str, splits: tuple[str, ...]) -> str:
        for split in splits:
            if f"{name}/{split}.jsonl" in self._names:
                return split
        wanted = " or ".join(f"{name}/{split}.jsonl" for split in splits)
        raise DataError(f"{self._source} has no {wanted}: FlashRAG's data sets, or a copy of them, are needed")

    def path(self, name: str, split: str) -> Path:
        file = f"{name}/{split}.jsonl"
        if self._folder is not None:
            return self._folder / file
        return Path(hf_hub_download(self._source, file, repo_type="dataset"))


def _rows(name: str, path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                cells = json.loads(line)
                row = {
                    "id": f"{name}-{cells['id']}",
                    "question": _question(cells["question"]),
                    "answers": gold_answers(cells["golden_answers"]),
                    "data_source": name,
                }
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}, line {number}: not a row of FlashRAG: {error!r}") from error
            yield json.dumps(row, ensure_ascii=False) + "\n"


def _question(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError("the question is empty")
    return value
