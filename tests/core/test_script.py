from typing import Any

import pytest

from mmsearch_trl.core.errors import UserError, shortened
from mmsearch_trl.core.script import run_script


def test_a_mistake_is_one_line_of_bounded_length(capsys: pytest.CaptureFixture[str]) -> None:
    def script() -> Any:
        raise UserError("bad row:\n" + "x" * 100_000 + "\nthe end")

    assert run_script(script) == 1
    told = capsys.readouterr().err
    assert told.startswith("mmsearch: error: bad row: xxx") and told.endswith(" the end\n")
    assert told.count("\n") == 1 and len(told) < 2100


@pytest.mark.parametrize("length", [0, 600, 601, 10_000])
def test_a_text_for_a_message_is_cut_in_its_middle(length: int) -> None:
    text = "".join(str(number % 10) for number in range(length))
    short = shortened(text)
    assert len(short) <= 600 and (short == text or (short[:500], short[-80:]) == (text[:500], text[-80:]))
