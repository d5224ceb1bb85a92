"""What docs/data.md shows is read, by the names that it says."""

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmsearch_trl.data.columns import Columns
from mmsearch_trl.data.config import DataConfig
from mmsearch_trl.data.messages import ConversationRules
from mmsearch_trl.data.reading import Reading
from mmsearch_trl.data.tasks import read_tasks


PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = {kind: re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE) for kind in ("json", "yaml")}
ROWS = [line for block in BLOCKS["json"] for line in block.splitlines() if line.endswith("}") and line.startswith("{")]


@pytest.mark.parametrize("line", ROWS)
def test_a_row_of_the_page_is_read(write_jsonl: Callable[..., Path], line: str) -> None:
    path = write_jsonl(re.sub(r'"(?:photos/)?1\.jpg"', '"box.png"', line))
    rules = ConversationRules(check=lambda messages: None, fingerprint="")
    shown = json.loads(line).keys() & {"image", "images"}
    for reading in (Reading(), Reading(rules=rules)):
        (task,) = read_tasks(path, reading=reading)
        assert task.question and task.answers and len(task.images) == len(shown)


@pytest.mark.parametrize("block", BLOCKS["yaml"])
def test_the_keys_of_the_page_are_keys(block: str) -> None:
    keys: dict[str, Any] = yaml.safe_load(block)
    own = {key: value for key, value in keys.items() if key in {each.name for each in fields(DataConfig)}}
    assert own.keys() == keys.keys() - {"rollout", "search", "reward"}
    if "columns" in own:
        own["columns"] = Columns(**own["columns"])
    assert DataConfig(**own).train_files == keys.get("train_files", [])
