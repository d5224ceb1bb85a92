"""Foreign text in a terminal."""

import re


_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Text in which no character drives the terminal: control characters and turns of direction become U+FFFD.

    A page could otherwise clear the screen, name the window or overwrite what was printed before it; and half a
    surrogate pair cannot be printed at all. Line breaks and tabs stay.
    """
    return _UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n"))
