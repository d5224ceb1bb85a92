import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
from forks import Forks
from huggingface_hub import ModelCard
from runs import QUICK, grpo_arguments

from mmsearch_trl.commands.main import main
from mmsearch_trl.hub.card import evaluation_table
from mmsearch_trl.hub.quick_start import _protocol, _tool


CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def run(world_home: Path, taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("card") / "agent"
    few = out.parent / "few.jsonl"
    few.write_text("".join((world_home / "world" / "known.jsonl").read_text().splitlines(keepends=True)[:2]))
    shutil.copytree(world_home / "world" / "images", out.parent / "images")
    options = QUICK | {"model_name_or_path": taught, "eval_files": few, "learning_rate": 0.0}
    assert main(["train", *grpo_arguments(world_home, out, **options)]) == 0
    return out


@pytest.mark.slow
def test_the_quick_start_searches_and_prints_the_answer(
    run: Path, world_home: Path, forks: Forks, tmp_path: Path
) -> None:
    world = world_home / "world"
    shutil.copy(world / "images" / "world0-known-000-name.png", tmp_path / "photo.jpg")
    for name in ("image_index", "text_index"):
        (tmp_path / name).symlink_to(world / name)
    (code,) = CODE.findall((run / "README.md").read_text())
    (tmp_path / "quick_start.py").write_text(code)
    done = forks.run(str(tmp_path / "quick_start.py"), folder=tmp_path)
    assert done.status == 0, done.err
    answer = (world / "known.jsonl").read_text().split('"answers": ["', 1)[1].split('"')[0]
    searched, answered, last = done.out.splitlines()
    assert searched.endswith("<search><img></search>")
    assert answered.endswith(f"<answer> {answer}</answer>")
    assert last == f"Answer: {answer}"


@pytest.mark.slow
def test_the_card_says_how_the_model_searches_and_how_good_it_is(run: Path) -> None:
    card = ModelCard.load(run / "README.md")
    assert card.data.to_dict()["pipeline_tag"] == "image-text-to-text"
    assert {"mmsearch", "grpo", "trl"} <= set(card.data.to_dict()["tags"])
    assert "| `max_turns` | 3 |" in card.text
    assert "| `image_top_k` | 3 |" in card.text
    assert "search_penalty 0.1" in card.text
    assert "| few | 2 |" in card.text


def test_the_table_shows_the_last_evaluation_of_each_data_set() -> None:
    history = [
        {"eval_known_search_ratio": 1.0, "eval_known_accuracy": 0.0, "eval_known_n": 4},
        {"eval_known_search_ratio": 0.25, "eval_known_accuracy": 0.5, "eval_known_n": 4},
        {"eval_known_source/world/search_ratio": 0.9, "loss": 1.0},
    ]
    table = evaluation_table(history)
    assert table is not None
    assert table.splitlines() == [
        "| data | n | accuracy | search ratio |",
        "|---|---|---|---|",
        "| known | 4 | 50.0% | 25.0% |",
    ]
    assert evaluation_table([{"loss": 1.0}]) is None


def test_what_a_tool_is_given_as_a_secret_is_not_in_the_quick_start() -> None:
    @dataclass(frozen=True)
    class Lookup:
        api_key: str
        url: str
        limit: int = 2

    code = _tool(Lookup("sesame", "https://user:sesame@host.example"))  # pyright: ignore[reportArgumentType]
    assert code == "Lookup(api_key='<redacted>', url='https://<redacted>@host.example'),"


def test_a_protocol_of_the_user_s_own_is_named_and_left_to_them() -> None:
    imports, lines = _protocol(tiny.qwen25().restless())
    assert imports == [] and lines[-1] == "protocol = ...  # your RestlessProtocol"
