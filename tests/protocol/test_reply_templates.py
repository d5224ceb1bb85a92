from pathlib import Path

import pytest

from mmsearch_trl.protocol.reply_templates import ReplyTemplates


def test_wording_comes_back_from_its_file(tmp_path: Path) -> None:
    templates = ReplyTemplates(failure="no: {reason}", nothing_found="")
    templates.save(tmp_path / "wording.yaml")
    assert ReplyTemplates.load(tmp_path / "wording.yaml") == templates


def test_what_a_file_leaves_out_keeps_its_default(tmp_path: Path) -> None:
    path = tmp_path / "wording.yaml"
    path.write_text("opening: '['\n", encoding="utf-8")
    assert ReplyTemplates.load(path) == ReplyTemplates(opening="[")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("opennig: x", "reply templates is a mapping of opening, closing"),
        ("- a", "reply templates is a mapping"),
        ("", "reply templates is a mapping"),
        ("opening: 3", "wording opening must be text, got 3"),
        ("image_item: '{title}'", "image_item must hold {image} once"),
        ("opening: [", "wording.yaml"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wording.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        ReplyTemplates.load(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.yaml: cannot be read: No such file"):
        ReplyTemplates.load(tmp_path / "none.yaml")
