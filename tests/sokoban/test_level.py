"""A level as text: what is read, what is refused."""

import pytest

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.sokoban.level import Level


ROOM = "#######\n#@$ . #\n#  *  #\n#######"


@pytest.mark.parametrize("text", [ROOM, ROOM.replace("@", "+").replace(" .", "  ")])
def test_a_level_is_written_as_it_was_read(text: str) -> None:
    assert Level.read(text).written() == text


def test_lines_may_be_ragged_and_floor_a_hyphen() -> None:
    ragged = "\n ####\n #@-##\n##$ .#\n#   ##\n#####\n"
    level = Level.read(ragged)
    assert level.written() == " #### \n #@ ##\n##$ .#\n#   ##\n##### "
    assert Level.read(level.written()).written() == level.written()


@pytest.mark.parametrize(
    ("level", "said"),
    [
        (None, "a text of several lines"),
        (7, "a text of several lines"),
        (" \n ", "a text of several lines"),
        ("#####\n#@$x#\n#####", "holds 'x'"),
        ("#####\n# $.#\n#####", "one player (@), and this one 0"),
        ("######\n#@@$.#\n######", "one player (@), and this one 2"),
        ("######\n#@$$.#\n######", "2 and 1 are in this one"),
        ("#####\n#@  #\n#####", "0 and 0 are in this one"),
        ("#####\n#@$. \n#####", "walls (#) all around"),
        ("@$.", "walls (#) all around"),
        ("#" * 51, "at most 50"),
        ("#\n" * 51, "at most 50"),
    ],
)
def test_what_is_no_level_is_refused(level: object, said: str) -> None:
    with pytest.raises(UserError) as refused:
        Level.read(level)
    assert said in str(refused.value)
