import pytest

from mmsearch_trl.core.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, Ünïcode, 漢字, 🙂\n\ttabs stay", "plain, Ünïcode, 漢字, 🙂\n\ttabs stay"),
        ("\x1b[2J\x1b]0;title\x07", "\ufffd[2J\ufffd]0;title\ufffd"),
        ("\x9b31mred", "\ufffd31mred"),
        ("right\rwrong", "right\ufffdwrong"),
        ("one\r\ntwo", "one\ntwo"),
        ("exe\u202etxt.\u2066", "exe\ufffdtxt.\ufffd"),
        ("half \ud83d an emoji", "half \ufffd an emoji"),
        ("\x00\x08\x7f", "\ufffd" * 3),
    ],
)
def test_nothing_drives_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode()
