from pathlib import Path

import pytest

from mmsearch_trl.protocol.wording import Wording


def test_wording_comes_back_from_its_file(tmp_path: Path) -> None:
    wording = Wording(failure="no: {reason}", nothing_found="")
    wording.save(tmp_path / "wording.yaml")
    assert Wording.load(tmp_path / "wording.yaml") == wording


def test_what_a_file_leaves_out_keeps_its_default(tmp_path: Path) -> None:
    path = tmp_path / "wording.yaml"
    path.write_text("opening: '['\n", encoding="utf-8")
    assert Wording.load(path) == Wording(opening="[")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("opennig: x", "reply wording is a mapping of opening, closing"),
        ("- a", "reply wording is a mapping"),
        ("", "reply wording is a mapping"),
        ("opening: 3", "wording opening must be text, got 3"),
        ("image_item: '{title}'", "image_item must hold {image} once"),
        ("opening: [", "wording.yaml"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wording.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        Wording.load(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read the reply wording"):
        Wording.load(tmp_path / "none.yaml")
