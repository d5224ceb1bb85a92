from pathlib import Path

import pytest

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.json_lines import Line, read_line, read_lines


BOM = b"\xef\xbb\xbf"


def written(folder: Path, content: bytes) -> Path:
    (folder / "a.jsonl").write_bytes(content)
    return folder / "a.jsonl"


def test_marks_line_ends_and_blank_lines_are_no_text(tmp_path: Path) -> None:
    path = written(tmp_path, BOM + b'{"a": 1}\r\n\r\n' + BOM + b"\n \n" + BOM + '{"a": "\u2028"}\n{"a": 3}'.encode())
    lines = list(read_lines(path))
    assert [line.number for line in lines] == [1, 5, 6]
    assert [line.object() for line in lines] == [{"a": 1}, {"a": "\u2028"}, {"a": 3}]
    assert [read_line(path, line.number, line.offset) for line in lines] == lines


def test_a_text_is_without_its_mark_and_line_end(tmp_path: Path) -> None:
    assert [line.text() for line in read_lines(written(tmp_path, BOM + b"who\r\n what \r\n"))] == ["who", "what"]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"a": "\\ud800"}', "not JSON: .*surrogates"),
        (b'{"\\udc00": 1}', "not JSON: .*surrogates"),
        (b"{", "not JSON: Expecting"),
        (b"[1]", "expected a JSON object, got a list"),
        (b'"a"', "expected a JSON object, got a str"),
        (b'{"a": 1, "a": 2}', "the key 'a' stands there twice"),
        (b'{"b": {"a": 1, "a": 2}}', "the key 'a' stands there twice"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not JSON"),
    ],
)
def test_a_line_that_is_no_object_is_an_error_of_that_line(raw: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as raised:
        Line(1, 0, raw).object()
    assert len(str(raised.value)) < 300


def test_a_whole_pair_of_surrogates_is_a_character() -> None:
    assert Line(1, 0, b'{"a": "\\ud83c\\uddea"}').object() == {"a": "\U0001f1ea"}


@pytest.mark.parametrize("content", ['{"a": 1}'.encode("utf-16"), b"\x1f\x8b\x08\0\0\0\0\0"])
def test_a_file_of_another_encoding_is_told_at_once(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match=r"a\.jsonl: no UTF-8 text, but UTF-16 or compressed: save it as plain UTF-8"):
        list(read_lines(written(tmp_path, content)))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone: cannot be read: No such file"):
        list(read_lines(tmp_path / "gone"))
