"""Reads what stands between tags, in time that grows with the text and no faster.

A regular expression such as `<answer>(.*?)</answer>` looks from each opening tag to the end of the text for a closing
one: a text of openings alone takes the square of its length.
"""

from collections.abc import Iterator


def enclosed(text: str, tag: str) -> Iterator[str]:
    """What stands in each `<tag>...</tag>`, line breaks included: from an opening tag to the first closing one behind
    it. Pairs do not overlap."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    begin = text.find(opening)
    while begin >= 0 and (end := text.find(closing, begin + len(opening))) >= 0:
        yield text[begin + len(opening) : end]
        begin = text.find(opening, end + len(closing))


def last_enclosed(text: str, tag: str) -> str | None:
    """What stands in the last `<tag>...</tag>`, without blanks around it; None where there is none."""
    found = list(enclosed(text, tag))
    return found[-1].strip() if found else None
