from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmsearch_trl.data.rows import gold_answers, image_source


@pytest.mark.parametrize("candidates", [["box", 3, None, ""], '["box", 3, null, ""]', ("box",)])
def test_candidates_may_be_a_list_or_its_json_and_only_texts_count(candidates: object) -> None:
    assert gold_answers("a box", candidates) == ("a box", "box")


def test_the_ground_truth_may_be_a_list_and_comes_first() -> None:
    truth = ["a box", "a case"]
    assert gold_answers(truth, ["box"]) == ("a box", "a case", "box")
    assert truth == ["a box", "a case"]


@pytest.mark.parametrize("truth", ["", "  ", None, [], [""], [None]])
def test_an_empty_ground_truth_is_an_error_even_with_candidates(truth: object) -> None:
    with pytest.raises(ValueError, match="ground truth is empty"):
        gold_answers(truth, ["box"])


@pytest.mark.parametrize(("candidates", "message"), [("box", "not a JSON list"), ('"box"', "list"), (3, "int")])
def test_candidates_of_another_kind_are_an_error(candidates: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gold_answers("a box", candidates)


@given(golds=st.lists(st.text().filter(str.strip), min_size=1))
def test_every_answer_is_kept_letter_by_letter(golds: list[str]) -> None:
    assert gold_answers(golds) == tuple(golds)


def test_an_image_cell_is_bytes_a_path_from_the_folder_or_a_picture() -> None:
    picture = Image.new("RGB", (1, 1))
    folder = Path("/data")
    assert image_source({"bytes": b"x", "path": "a.png"}, folder) == b"x"
    assert image_source({"bytes": None, "path": "a.png"}, folder) == Path("/data/a.png")
    assert image_source("a.png", folder) == Path("/data/a.png")
    assert image_source("/other/a.png", folder) == Path("/other/a.png")
    assert image_source(picture, folder) is picture


@pytest.mark.parametrize("cell", [None, b"", "", {}, {"bytes": None, "path": None}, 3])
def test_an_image_cell_without_an_image_is_an_error(cell: object) -> None:
    with pytest.raises(ValueError, match="no image"):
        image_source(cell, Path())
