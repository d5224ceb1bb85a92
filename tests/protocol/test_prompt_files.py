import os
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.protocol.prompt_files import Prompts, load_prompt


GRAMMAR = re.compile(
    r"<reason>.*?</reason>(<answer>[^<]+</answer>|<search><img></search>|<text_search>[^<]+</text_search>)"
)


class RunsOnLoad:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_the_shipped_first_prompt_shows_every_action_and_ends_with_image_and_question() -> None:
    prompts = Prompts.load()
    assert len(GRAMMAR.findall(prompts.first_turn)) == 3
    assert prompts.first_turn.endswith("Here are the image and the question:\n{image} {question}")


def test_the_prompt_after_an_image_search_offers_text_search_and_the_one_after_a_text_search_does_not() -> None:
    prompts = Prompts.load()
    assert [action[:8] for action in GRAMMAR.findall(prompts.after_image_search)] == ["<answer>", "<text_se"]
    assert [action[:8] for action in GRAMMAR.findall(prompts.after_text_search)] == ["<answer>"]
    assert "Unable to answer due to lack of relevant information" in prompts.after_text_search
    assert len(GRAMMAR.findall(prompts.forced_answer)) == 1


def test_shipped_prompts_hold_no_placeholder_of_a_model() -> None:
    prompts = Prompts.load()
    for text in (prompts.first_turn, prompts.after_image_search, prompts.after_text_search, prompts.forced_answer):
        assert "<|" not in text and "<image>" not in text


def test_a_text_file_replaces_a_prompt_without_its_last_newline(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("Antworte für mich.\n", encoding="utf-8")
    assert load_prompt(tmp_path / "p.txt", "forced_answer") == "Antworte für mich."


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_upstream_prompt_is_read_from_its_pickle_and_the_question_follows_its_image(
    tmp_path: Path, protocol: int
) -> None:
    text = "Look. {not a slot} Here is the image and the question:\n<image> "
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(text, protocol=protocol))
    prompts = Prompts.load(first_turn=tmp_path / "p.pkl")
    assert prompts.first_turn == "Look. {not a slot} Here is the image and the question:\n{image} {question}"


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    target = tmp_path / "made"
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(RunsOnLoad(target)))
    with pytest.raises(UserError, match=r"p\.pkl.*mkdir"):
        load_prompt(tmp_path / "p.pkl", "first_turn")
    assert not target.exists()


@pytest.mark.parametrize("value", [b"text", ["text"], {"a": "b"}, None, 3, ("text",)])
def test_a_pickle_of_anything_but_one_str_is_refused(tmp_path: Path, value: object) -> None:
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(UserError, match=type(value).__name__):
        load_prompt(tmp_path / "p.pkl", "first_turn")


@given(data=st.binary(max_size=60))
def test_bytes_that_are_no_pickle_end_in_an_error_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("p") / "p.pkl"
    path.write_bytes(data)
    try:
        assert isinstance(load_prompt(path, "first_turn"), str)
    except UserError as error:
        assert "p.pkl" in str(error)


def test_nothing_need_follow_the_results_of_a_search(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    assert Prompts.load(after_image_search=tmp_path / "empty.txt").after_image_search == ""


def test_a_missing_and_an_unknown_file_are_errors(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("{}")
    for name, message in [("gone.txt", "not found"), ("p.json", r"a \.txt file")]:
        with pytest.raises(UserError, match=message):
            load_prompt(tmp_path / name, "first_turn")


@pytest.mark.parametrize("text", ["no slot", "{image} only", "{image} {question} {question}"])
def test_a_first_prompt_without_both_slots_once_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(UserError, match=r"p\.txt.*exactly once"):
        Prompts.load(first_turn=tmp_path / "p.txt")


def test_what_editors_of_windows_write_is_no_part_of_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfLook.\r\nAnswer.\r\n")
    assert load_prompt(tmp_path / "p.txt", "forced_answer") == "Look.\nAnswer."
