import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


FVQA_MINI = Path(__file__).parents[1] / "fixtures" / "fvqa_mini.parquet"


@pytest.fixture
def fvqa_mini() -> Path:
    """Five InfoSeek rows in the form of the MMSearch-R1 release: JPEG images of up to 800 pixels."""
    return FVQA_MINI


@pytest.fixture
def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), (10, 20, 30)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def write_parquet(tmp_path: Path, png: bytes) -> Callable[..., Path]:
    """Writes rows in the MMSearch-R1 form; each argument is a dict that overrides cells of a good row."""

    def write(*overrides: dict[str, Any], name: str = "made.parquet", without: tuple[str, ...] = ()) -> Path:
        good = {
            "prompt": [{"content": "What is it?", "role": "user"}],
            "images": [{"bytes": png, "path": None}],
            "reward_model": {"ground_truth": "a box", "candidate_answers": '["box"]', "style": "rule"},
            "data_source": "mmsearch_r1/made",
        }
        rows = [{key: value for key, value in (good | cells).items() if key not in without} for cells in overrides]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def write_jsonl(tmp_path: Path, png: bytes) -> Callable[..., Path]:
    """Writes lines (dicts, or text as it is) to `plain.jsonl` beside `box.png`."""

    def write(*lines: dict[str, Any] | str) -> Path:
        (tmp_path / "box.png").write_bytes(png)
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (tmp_path / "plain.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
        return tmp_path / "plain.jsonl"

    return write
