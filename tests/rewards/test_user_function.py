"""Reward functions of the user's: where they are found, in which signatures they are called, and whom to blame."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.rewards.user_function import user_function


GIVEN: dict[str, Any] = {
    "prompts": [[{"role": "user", "content": "é?"}]] * 2,
    "completions": [[{"role": "assistant", "content": "one"}], [{"role": "assistant", "content": "three"}]],
    "completion_ids": [[1], [2]],
    "queries": ["<s>é?one", "<s>é?three"],
    "answers": [["a", "b"], []],
    "log_metric": lambda name, value: None,
}
CODE = """
def reward_func(queries, prompts, labels):
    import torch
    assert queries == ["<s>é?one", "<s>é?three"] and prompts[0].startswith('[{"role": "user"') and labels == ["a", ""]
    return torch.tensor([[float(len(query))] for query in queries])

def as_mapping(queries, prompts, labels, **more):
    return {"rewards": [1, 2], "scores": None, "extra_logs": {}}

def of_trl(completions, answers, **columns):
    return [float(len(messages[0]["content"])) for messages in completions]

def takes_little(completions):
    return [None, 0.5]

async def slowly(completions, **columns):
    return [1.0] * len(completions)

async def slowly_openrlhf(queries, prompts, labels):
    return [float(label == "a") for label in labels]

class Judge:
    def __call__(self, completions, **columns):
        return [7.0, 7.0]

class AsyncJudge:
    async def __call__(self, completions, **columns):
        return [8.0, 8.0]

def too_few(completions, **columns):
    return [1.0]

def a_number(completions, **columns):
    return 1.0

def words(completions, **columns):
    return ["good", "bad"]

def wants_column(completions, difficulty):
    return [1.0, 1.0]

def wants_nothing(x, y):
    return [1.0, 1.0]

def breaks(completions, **columns):
    return [1.0 / 0 for _ in completions]

async def breaks_later(completions, **columns):
    raise KeyError("gone")

limit = 3
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text(CODE, encoding="utf-8")
    return str(tmp_path / "my_rewards.py")


def rewards(path: str) -> Any:
    result = user_function(path)(**GIVEN)
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", [8.0, 10.0]),
        (":reward_func", [8.0, 10.0]),
        (":as_mapping", [1.0, 2.0]),
        (":of_trl", [3.0, 5.0]),
        (":takes_little", [None, 0.5]),
        (":slowly", [1.0, 1.0]),
        (":slowly_openrlhf", [1.0, 0.0]),
        (":Judge", [7.0, 7.0]),
        (":AsyncJudge", [8.0, 8.0]),
    ],
)
def test_a_function_of_a_file_is_called_in_its_signature(file: str, name: str, expected: Any) -> None:
    assert rewards(file + name) == expected


def test_a_function_of_a_module_is_found_in_the_working_directory_and_has_a_name_of_its_own(file: str) -> None:
    assert rewards("my_rewards:of_trl") == [3.0, 5.0]
    assert (
        user_function(file + ":of_trl").__name__ == user_function("my_rewards:of_trl").__name__ == "my_rewards.of_trl"
    )


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("gone.py", "no file gone.py"),
        ("gone.py:f", "no file gone.py"),
        ("{file}:gone", "has no function `gone`"),
        ("{file}:limit", "has no function `limit`"),
        ("nothing", "names no function: write my_file.py:name or package.module:name"),
        ("no.such.module:f", "there is no module no"),
        ("{file}:wants_nothing", "takes x, y: a reward function takes queries, prompts and labels"),
    ],
)
def test_what_is_not_there_or_is_none_is_refused_before_training(file: str, path: str, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)) as told:
        user_function(path.format(file=file))
    assert "reward.function" in str(told.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("too_few", "gave 1 rewards for 2 completions"),
        ("a_number", "gave float, and not a list of numbers"),
        ("words", "gave what is no number: ValueError"),
        ("wants_column", "needs `difficulty`, which is none of what there is: answers, completion_ids"),
        ("breaks", r"raised ZeroDivisionError: .*my_rewards\.py, line \d+\)"),
        ("breaks_later", r"raised KeyError: 'gone' .*my_rewards\.py, line \d+\)"),
    ],
)
def test_what_goes_wrong_in_it_is_told_with_file_and_line(file: str, name: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as told:
        rewards(f"{file}:{name}")
    assert "\n" not in str(told.value)


def test_a_file_that_cannot_be_imported_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import json\nraise OSError('no')\n")
    with pytest.raises(UserError, match=r"cannot be imported: OSError: no .*broken\.py, line 2"):
        user_function(str(tmp_path / "broken.py"))


def test_prompts_are_the_messages_as_json(file: str) -> None:
    assert json.loads(json.dumps(GIVEN["prompts"][0], ensure_ascii=False)) == [{"role": "user", "content": "é?"}]
