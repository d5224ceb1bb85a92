"""`mmsearch cache prefetch` as a user types it: what it looked up is cached, and it goes on where it was stopped."""

from pathlib import Path

import pytest
import runs
from test_train import some_rows

from mmsearch_trl.commands.main import main
from mmsearch_trl.commands.prefetch import read_queries
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.search.cache.store import ResultStore


def arguments(world_home: Path, tmp_path: Path, **overrides: object) -> list[str]:
    values = {"search.cache": tmp_path / "answers.sqlite", "eval_files": "[]"}
    values["train_files"] = runs.write_jsonl(tmp_path / "train.jsonl", some_rows(world_home, 60))
    return ["cache", "prefetch", *runs.grpo_arguments(world_home, tmp_path / "out", **values | overrides)]


def test_the_pictures_that_a_run_will_look_up_are_kept(
    world_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(world_home, tmp_path)
    assert main(words) == 0
    first = capsys.readouterr().out
    kept = len(ResultStore(tmp_path / "answers.sqlite"))
    assert f"{kept} looked up" in first and kept > 10
    assert "image search: " in first and f"0 failed), {kept} tries, 0.0 MB received" in first
    assert main([*words, "--search.cache_mode=replay"]) == 0
    again = capsys.readouterr().out
    assert "looked up" not in again and "cached before" in again and "not_cached" not in again


def test_texts_are_looked_up_from_a_file_and_those_that_were_are_not_asked_again(
    world_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "queries.txt"
    file.write_text("who founded Calton\n\n  Arbury city \n")
    assert main([*arguments(world_home, tmp_path), "--queries", str(file)]) == 0
    assert "2 looked up" in capsys.readouterr().out
    with file.open("a") as queries:
        queries.write("Kelso\n")
    assert main([*arguments(world_home, tmp_path), f"--queries={file}"]) == 0
    shown = capsys.readouterr().out
    assert "1 looked up, 2 cached before" in shown.replace(
        "2 cached before, 1 looked up", "1 looked up, 2 cached before"
    )
    assert "text search: 3 calls (2 cached, 0 shared, 0 failed), 1 tries" in shown
    assert len(ResultStore(tmp_path / "answers.sqlite")) == 3


def test_the_questions_of_the_data_can_be_the_queries(
    world_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments(world_home, tmp_path), "--queries", "questions"]) == 0
    shown = capsys.readouterr().out
    assert "text search: " in shown and "image search" not in shown and " 0 failed)" in shown


def test_rows_of_jsonl_name_their_query(tmp_path: Path) -> None:
    rows = [{"query": "a"}, {"question": "b", "answers": ["x"]}, {"query": "c", "question": "d"}]
    assert list(read_queries(runs.write_jsonl(tmp_path / "queries.jsonl", rows))) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.jsonl", b'{"query": "a"}\n{"q": "b"}\n', "q.jsonl, line 2: holds neither"),
        ("q.jsonl", b'{"query": "a"}\nb\n', "q.jsonl, line 2: not JSON"),
        ("q.jsonl", b"[1]\n", "q.jsonl, line 1: expected a JSON object"),
        ("q.txt", b"\xff\xfe\x00", "q.txt: no UTF-8 text, but UTF-16 or compressed"),
        ("gone.txt", None, "gone.txt: cannot be read: No such file"),
    ],
)
def test_a_file_of_queries_that_cannot_be_used_is_named_before_anything_is_asked(
    world_home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
    message: str,
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main([*arguments(world_home, tmp_path), "--queries", str(tmp_path / name)]) == 1
    assert message in capsys.readouterr().err
    assert len(ResultStore(tmp_path / "answers.sqlite")) == 0


def test_a_prefetch_needs_a_place_and_a_search(
    world_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "prefetch", *runs.grpo_arguments(world_home, tmp_path / "out")]) == 1
    assert "search.cache is not set" in capsys.readouterr().err
    assert main([*arguments(world_home, tmp_path), "--search.image=null"]) == 1
    assert "no image search is configured" in capsys.readouterr().err
    assert main([*arguments(world_home, tmp_path), "--search.text=null", "--queries=questions"]) == 1
    assert "no text search is configured" in capsys.readouterr().err


def test_queries_are_read_like_all_text(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    (tmp_path / "q.txt").write_bytes(mark + "Amélie\r\n\r\n second \r\n".encode())
    assert list(read_queries(tmp_path / "q.txt")) == ["Amélie", "second"]
    (tmp_path / "q.jsonl").write_bytes(mark + b'{"query": null, "question": "<image>\\nb"}\r\n')
    assert list(read_queries(tmp_path / "q.jsonl")) == ["b"]


@pytest.mark.parametrize(
    "row", ['{"query": "\\ud83c"}', '{"query": " "}', '{"query": 3}', '{"query": "a", "query": "b"}']
)
def test_a_query_is_a_text_that_is_not_empty(tmp_path: Path, row: str) -> None:
    (tmp_path / "q.jsonl").write_text(row)
    with pytest.raises(UserError, match=r"q\.jsonl, line 1: "):
        list(read_queries(tmp_path / "q.jsonl"))


def test_a_recipe_for_a_gpu_is_prefetched_without_one(
    world_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a trainer needs (bf16, a divisible batch, packages) is not asked for."""
    gpu = {"bf16": True, "tf32": True, "use_cpu": False, "optim": "adamw_8bit", "num_generations": 7}
    model = {"model_name_or_path": "some/model", "attn_implementation": "flash_attention_2"}
    assert main(arguments(world_home, tmp_path, **gpu, **model)) == 0
    assert "looked up" in capsys.readouterr().out
