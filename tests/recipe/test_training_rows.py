"""Rows to train on, by a recipe: of all files or by shares, capped, with what a rule can score; and what is logged."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import small_lm
import yaml
from runs import write_jsonl

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.protocol.direct import DirectProtocol
from mmsearch_trl.recipe.data import count_training_rows, load_rows, load_training_rows
from mmsearch_trl.recipe.recipe import Recipe, load_recipe
from mmsearch_trl.rewards.answer import AnswerRule


PROTOCOL = DirectProtocol(ChatEncoder(small_lm.build_tokenizer()))
RULE = AnswerRule("EM")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Sets of 40, 10 and 5 rows."""
    sizes = {"a": 40, "b": 10, "c": 5}
    return [
        str(
            write_jsonl(
                tmp_path / f"{name}.jsonl",
                [{"question": f"{name} {number}?", "answer": "x"} for number in range(size)],
            )
        )
        for name, size in sizes.items()
    ]


def recipe_of(files: list[str], **keys: Any) -> Recipe:
    values = {
        "model_name_or_path": "org/model",
        "protocol": "direct",
        "train_files": files,
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "reward": {"rule": "answer"},
    }
    path = Path(files[0]).with_name("recipe.yaml")
    path.write_text(yaml.safe_dump(values | keys))
    return load_recipe(path)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def test_without_shares_all_rows_stand_once(files: list[str]) -> None:
    recipe = recipe_of(files)
    rows = load_training_rows(recipe, PROTOCOL, RULE)
    assert len(set(rows["id"][:])) == len(rows) == count_training_rows(recipe) == 55


def test_shares_are_drawn_by_the_seed_of_the_run(files: list[str], told: pytest.LogCaptureFixture) -> None:
    recipe = recipe_of(files, mixture=[0.5, 0.3, 0.2], seed=3)
    rows = load_training_rows(recipe, PROTOCOL, RULE)
    drawn = Counter(rows["data_source"][:])
    assert {name: drawn[name] / len(rows) for name in "abc"} == pytest.approx({"a": 0.5, "b": 0.3, "c": 0.2}, abs=0.1)
    assert len(set(rows["id"][:])) == 55 and len(rows) == count_training_rows(recipe)
    assert f"mixture: {len(rows)} rows of 40, 10, 5" in told.text
    again = load_training_rows(recipe_of(files, mixture=[5, 3, 2], seed=3), PROTOCOL, RULE)
    other = load_training_rows(recipe_of(files, mixture=[5, 3, 2], seed=4), PROTOCOL, RULE)
    assert again["id"][:] == rows["id"][:] != other["id"][: len(rows)]


def test_caps_of_each_file_and_of_all(files: list[str], told: pytest.LogCaptureFixture) -> None:
    each = load_training_rows(recipe_of(files, max_samples_per_file=7), PROTOCOL, RULE)
    assert Counter(each["data_source"][:]) == {"a": 7, "b": 7, "c": 5}
    assert "max_samples_per_file: at most 7 rows of each of" in told.text
    assert count_training_rows(recipe_of(files, max_samples_per_file=7)) == 19
    both = recipe_of(files, max_samples_per_file=7, max_samples=9)
    assert load_training_rows(both, PROTOCOL, RULE)["id"][:] == each["id"][:9]
    assert "max_samples: the first 9 of 19 rows" in told.text and count_training_rows(both) == 9
    mixed = recipe_of(files, mixture=[1, 1, 1], max_samples_per_file=6, max_samples=12)
    drawn = Counter(load_training_rows(mixed, PROTOCOL, RULE)["data_source"][:])
    assert sum(drawn.values()) == 12 and set(drawn) == set("abc")
    evaluated = load_rows(both, files[:1], PROTOCOL, RULE)
    assert len(evaluated) == 40  # caps are of training


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"mixture": [0.5, 0.5]}, "mixture holds 2 shares, and train_files 3 sets"),
        ({"mixture": [0.5, 0.5, 0]}, "a share is a number over 0"),
        ({"max_samples": 0}, "max_samples must be at least 1"),
        ({"columns": {"answers": "x"}}, "unknown key `columns.answers`; did you mean `columns.answer`"),
        ({"columns": "x"}, "`columns` must be a mapping"),
        ({"template": "nothing"}, "template must hold {question} once"),
        ({"max_pixels": 50_000}, "min_pixels and max_pixels need a vision-language model"),
        ({"image_folder": "/no/such"}, "image_folder: /no/such is no folder"),
    ],
)
def test_wrong_keys_are_refused_by_their_names(files: list[str], keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as raised:
        load_training_rows(recipe_of(files, **keys), PROTOCOL, RULE)
    assert "\n" not in str(raised.value)


def test_a_system_prompt_that_no_row_takes_is_refused(files: list[str], told: pytest.LogCaptureFixture) -> None:
    chat = [{"role": "system", "content": "own"}, {"role": "user", "content": "?"}]
    own = str(write_jsonl(Path(files[0]).with_name("own.jsonl"), [{"messages": chat, "answer": "x"}] * 4))
    with pytest.raises(UserError, match="each row begins with a system message of its own"):
        load_training_rows(recipe_of([own], system_prompt="Be brief."), PROTOCOL, RULE)
    rows = load_training_rows(recipe_of([own, files[2]], system_prompt="Be brief."), PROTOCOL, RULE)
    assert "4 of 9 rows have a system message of their own, and keep it" in told.text
    assert [messages[0]["content"] for messages in rows["messages"][:5]] == [["own"]] * 4 + [["Be brief."]]
    same = load_training_rows(recipe_of([own], system_prompt="own"), PROTOCOL, RULE)
    assert len(same) == 4


def test_a_row_without_answer_is_the_rules_to_refuse(files: list[str]) -> None:
    free = str(write_jsonl(Path(files[0]).with_name("free.jsonl"), [{"question": "push", "answer": ""}] * 4))
    recipe = recipe_of([free])
    with pytest.raises(UserError, match=r"free\.jsonl, line 1: the ground truth is empty"):
        load_training_rows(recipe, PROTOCOL, RULE)
    assert load_training_rows(recipe, PROTOCOL, None)["answers"][:] == [[]] * 4
