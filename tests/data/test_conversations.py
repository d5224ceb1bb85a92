"""Published layouts as conversations: where each picture stands, and what the answer is, for a run without tools."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.message import Message
from mmsearch_trl.data.answers import Scoring
from mmsearch_trl.data.columns import Columns
from mmsearch_trl.data.dataset import load_dataset_rows, row_to_task
from mmsearch_trl.data.messages import ConversationRules
from mmsearch_trl.data.reading import Reading
from mmsearch_trl.data.rows import RowError, SkippedRows
from mmsearch_trl.data.tasks import read_tasks


Writer = Callable[..., Path]
RULES = ConversationRules(check=lambda messages: None, fingerprint="")
READING = Reading(rules=RULES)
AS_THEY_ARE = Scoring(as_words=False)
FREE = Scoring(needed=False, as_words=False)


def user(*content: str | None) -> Message:
    return Message("user", content)


LAYOUTS: dict[str, tuple[dict[str, Any], tuple[Message, ...], tuple[str, ...]]] = {
    "EasyR1": (
        {"problem": "<image>Find $x$ in <image>.", "answer": "3", "images": ["box.png", "box.png"]},
        (user(None, "Find $x$ in ", None, "."),),
        ("3",),
    ),
    "R1-V": (
        {"problem": "How many?", "solution": "<answer> 3 </answer>", "image": "box.png"},
        (user(None, "How many?"),),
        ("3",),
    ),
    "VLM-R1": (
        {
            "image": ["box.png"],
            "conversations": [{"from": "human", "value": "<image>\nHow many?"}, {"from": "gpt", "value": "4"}],
        },
        (user(None, "\nHow many?"),),
        ("4",),
    ),
    "LLaVA with an answer": (
        {
            "conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "Four, I say."}],
            "answer": "4",
        },
        (user("How many?"),),
        ("4",),
    ),
    "verl": (
        {
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "<image>2 + 2? Box it."}],
            "images": ["box.png"],
            "reward_model": {"ground_truth": "4", "style": "rule"},
            "data_source": "geo",
            "extra_info": {"question": "2 + 2?"},
        },
        (Message("system", ("s",)), user(None, "2 + 2? Box it.")),
        ("4",),
    ),
    "verl without pictures": (
        {"prompt": [{"role": "user", "content": "2 + 2?"}], "reward_model": {"ground_truth": "4"}},
        (user("2 + 2?"),),
        ("4",),
    ),
    "LMM-R1": (
        {
            "message": json.dumps(
                [
                    {"role": "system", "content": "<think> first"},
                    {
                        "role": "user",
                        "content": [{"type": "image", "image": "box.png"}, {"type": "text", "text": "?"}],
                    },
                ]
            ),
            "answer": "$2$",
            "question": "bare",
        },
        (Message("system", ("<think> first",)), user(None, "?")),
        ("$2$",),
    ),
    "a chat that ends with its answer": (
        {"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]},
        (user("1 + 1?"),),
        ("2",),
    ),
    "DeepScaleR": ({"problem": "1 + 1?", "answer": "2", "solution": "so 2"}, (user("1 + 1?"),), ("2",)),
    "one's own": ({"question": "Who?", "image": "box.png", "answers": ["a"]}, (user(None, "Who?"),), ("a",)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_as_a_conversation(write_jsonl: Writer, tmp_path: Path, name: str) -> None:
    cells, messages, answers = LAYOUTS[name]
    path, reading = write_jsonl(cells), Reading(rules=RULES, scoring=AS_THEY_ARE)
    (task,) = read_tasks(path, reading=reading)
    rows: Any = load_dataset_rows(path, reading=reading, cache_dir=tmp_path / "cache")
    for each in (task, row_to_task(rows[0])):
        assert (each.messages, each.answers) == (messages, answers)
        assert len(each.images) == sum(message.pictures for message in messages)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": []}, "line 2: .*<image> has no picture"),
        ({"images": ["box.png"] * 3}, "line 2: the messages have places for 2 of the row's 3 pictures"),
        ({"problem": " "}, "line 2: .*empty"),
    ],
)
def test_pictures_and_places_that_do_not_match_name_the_row(
    write_jsonl: Writer, changes: dict[str, Any], reason: str
) -> None:
    good = LAYOUTS["EasyR1"][0]
    with pytest.raises(RowError, match=reason):
        list(read_tasks(write_jsonl(good, good | changes), reading=READING))


def test_the_recipe_names_conversation_and_question(write_jsonl: Writer) -> None:
    row = {"talk": [{"role": "user", "content": "all of it"}], "short": "it", "gold": "2"}
    columns = Columns(messages="talk", prompt="short", answer="gold")
    path = write_jsonl(row)
    (direct,) = read_tasks(path, reading=Reading(columns=columns, rules=RULES))
    (searching,) = read_tasks(path, reading=Reading(columns=columns))
    assert direct.messages == (user("all of it"),) and searching.question == "it"


@pytest.mark.parametrize("answer", [None, "", [], "  ", [None]])
def test_a_row_needs_no_answer_where_the_reward_needs_none(write_jsonl: Writer, answer: Any) -> None:
    path = write_jsonl({"question": "Push the boxes.", "answer": answer, "env": 3})
    (task,) = read_tasks(path, reading=Reading(rules=RULES, scoring=FREE))
    assert (task.answers, dict(task.extra)) == ((), {"env": 3})
    for reading in (READING, Reading(), Reading(rules=RULES, scoring=AS_THEY_ARE)):
        with pytest.raises(RowError, match=r"plain\.jsonl, line 1: the ground truth is empty"):
            list(read_tasks(path, reading=reading))


def test_a_file_without_a_column_of_answers_will_do_where_none_is_needed(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("problem,level\nPush.,3\n")
    (task,) = read_tasks(tmp_path / "rows.csv", reading=Reading(rules=RULES, scoring=FREE))
    assert (task.question, task.answers) == ("Push.", ())
    with pytest.raises(UserError, match="nothing holds the answers of a row: its columns are problem, level"):
        list(read_tasks(tmp_path / "rows.csv", reading=READING))


@pytest.mark.parametrize(
    ("given", "as_they_are", "as_words"),
    [
        ("[1, 2]", ("[1, 2]",), ("1", "2")),
        ("{1, 2}", ("{1, 2}",), ("1", "2")),
        (["[1, 2]", "x"], ("[1, 2]", "x"), ("1", "2", "x")),
        ("A", ("A",), None),
        ("+", ("+",), None),
        (4.0, ("4",), ("4",)),
    ],
)
def test_answers_that_are_no_words_are_taken_as_they_are(
    write_jsonl: Writer, tmp_path: Path, given: Any, as_they_are: tuple[str, ...], as_words: tuple[str, ...] | None
) -> None:
    path = write_jsonl({"question": "?a", "answer": given})
    reading = Reading(rules=RULES, scoring=AS_THEY_ARE)
    rows: Any = load_dataset_rows(path, reading=reading, cache_dir=tmp_path / "cache")
    assert row_to_task(rows[0]).answers == as_they_are
    if as_words is None:
        with pytest.raises(RowError, match="cannot be scored"):
            list(read_tasks(path))
    else:
        (task,) = read_tasks(path)
        assert task.answers == as_words


def test_a_rule_says_which_answers_it_cannot_score(write_jsonl: Writer, tmp_path: Path) -> None:
    asked: list[int] = []

    def unusable(answers: Sequence[Sequence[str]]) -> dict[int, str]:
        asked.append(len(answers))
        return {number: f"no number: {golds[0]}" for number, golds in enumerate(answers) if "x" in golds[0]}

    path = write_jsonl(*({"question": "?a", "answer": f"{number}{'x' * (number == 70)}"} for number in range(80)))
    reading = Reading(scoring=Scoring(as_words=False, unusable=unusable, fingerprint="one"))
    with pytest.raises(RowError, match=r"plain\.jsonl, line 71: no number: 70x"):
        load_dataset_rows(path, reading=reading, cache_dir=tmp_path / "cache")
    skipped = SkippedRows()
    rows = load_dataset_rows(path, reading=reading, on_error="skip", cache_dir=tmp_path / "cache", skipped=skipped)
    assert (len(rows), [error.place for error in skipped.errors]) == (79, ["line 71"])
    assert max(asked) <= 32 and sum(asked) == 160  # in a few calls, and once for each row


@pytest.mark.parametrize("key", ["message", "messages", "conversations"])
def test_messages_that_are_cut_off_are_no_question(write_jsonl: Writer, key: str) -> None:
    cut = json.dumps([{"role": "user", "content": "1 + 1?"}])[:-1]
    for reading in (READING, Reading()):
        with pytest.raises(RowError, match=f"line 1: '{key}' begins as messages do, and is no list of them in JSON"):
            list(read_tasks(write_jsonl({key: cut, "answer": "2"}), reading=reading))
    (task,) = read_tasks(write_jsonl({"prompt": "[1, 2] is what?", "answer": "an interval"}), reading=READING)
    assert task.question == "[1, 2] is what?"
