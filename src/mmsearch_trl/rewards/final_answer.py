r"""What a final answer says, as LaTeX for math-verify: its last box, else its last `$...$`, else a plain expression.

Nothing here evaluates anything, and a text is cut at `LONGEST` characters.
"""

import re
from collections.abc import Iterator


LONGEST = 2000
"""Characters of a final answer; the last ones count."""

_SIGNS = (
    {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full width
    | dict.fromkeys((0x2212, 0x2013, 0xFE63), "-")
    | dict.fromkeys((0x3000, 0x00A0, 0x202F, 0x2009), " ")
)
_LATEX = (
    *(("**", "^"), ("*", r"\cdot "), ("\u00d7", r"\times "), ("\u00f7", "/"), ("\u00b7", r"\cdot ")),
    *(("\u00b0", r"^\circ "), ("\u03c0", r"\pi "), ("\u221e", r"\infty "), ("\u00b2", "^2"), ("\u00b3", "^3")),
    *(("<=", r"\le "), (">=", r"\ge "), ("\u2264", r"\le "), ("\u2265", r"\ge "), ("\u222a", r"\cup ")),
)
"""Signs as people type them, and their LaTeX."""
_ROOT = re.compile(r"(?:(?<![\\A-Za-z])sqrt\s?|\u221a\s?)(?:\(([^()]{0,200})\)|(\d+(?:\.\d+)?|[A-Za-z]))")
_PI = re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])")
_PERCENT = re.compile(r"(?<=\d)\s?(?:%|per\s?cent\b|pct\b)", re.IGNORECASE)
_MIXED = re.compile(r"(?<![\w.])(\d+)\s(\d+)/(\d+)(?![\w.])")
_POWER_OF_TEN = re.compile(r"(?<![A-Za-z\d.])(\d+(?:\.\d+)?)[eE]([+-]?\d+)(?![A-Za-z\d])")
_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:\\[,; ]|\{,\}|[ ,])\d{3})+(?!\d|[,.]\d{3})")
_GROUPING = re.compile(r"\\[,; ]|\{,\}|[ ,]")

_BRACES = re.compile(r"\\f?box(?:ed)?\s?\{|\\[{}]|[{}]")
_MATH = re.compile(
    r"(?<!\\)\$\$([^$]+)\$\$|(?<!\\)\$((?:\\\$|[^$])+)\$"
    r"|\\\[((?:[^\\]|\\(?![\[\]]))+)\\\]|\\\(((?:[^\\]|\\(?![()]))+)\\\)"
)
_COMMAND = re.compile(r"\\(?:begin|end)\{[a-z]+\*?\}|\\(?:text|mathrm|textbf|operatorname)\s?\{[^{}]*\}|\\[A-Za-z]+")
_WORD = re.compile(
    r"[A-Za-z]{4,}|(?<![A-Za-z])(?:is|it|so|or|and|are|the|of|to|as|be|we|for|in|by|at)(?![A-Za-z])", re.IGNORECASE
)
"""A word, which no expression holds."""
_JOINT = re.compile(r",?\s(?:and|or)\s|,?\s?\\text\{\s?(?:and|or)\s?\}|;|,\s|\u3001")
_TAIL = re.compile(r"\A.*(?:\s(?:is|are|equals|be)\s|[=:])", re.DOTALL | re.IGNORECASE)

_UNIT = r"(?:[munkcd]?m|[mk]?g|[hsNJWV]|min|hr|sec|mi|ft|in|kJ|kW|Pa|Hz|mol|m?[lL]|deg)(?:\^?\{?[23]\}?)?"
_OF_MEASURE = re.compile(rf"\s?{_UNIT}(?:\s?[/\u00b7]\s?{_UNIT})?\.?\Z")
"""The unit with which a measure ends."""
_NUMBER = re.compile(
    r"(?<![\w.\\^/])[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:\s?/\s?\d+)?(?:\s?\\?%)?"
    rf"(?!(?!{_UNIT}(?![A-Za-z]))[\w^(/]|\.\d|\s?[*+=^])"
)
_DIGIT, _LETTER = re.compile(r"\d"), re.compile("[A-Za-z]")
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|operatorname)\s?\{([^{}]*)\}")
_WORDS = re.compile(r"(?=.{3})[^\W\d_]+(?:[\s'-]+[^\W\d_]+)*", re.DOTALL)


def readings(answer: str) -> Iterator[str]:
    """What an answer may be read as, what it most likely means first; each is LaTeX.

    A list ("1, 2", "$1$ and $2$") is read as a whole, which only another list equals, and then by its last item.
    """
    text = tidied(answer)
    if found := boxes(text):
        yield from _expression(found[-1])
        return
    marked = [next(filter(None, match.groups())) for match in _MATH.finditer(text)]
    if marked:
        if len(marked) > 1:
            yield _latex(", ".join(marked))
        yield from _expression(marked[-1])
        return
    text = _latex(text.replace(r"\$", "").replace("$", "").removesuffix("."))
    tail = _TAIL.sub("", text, count=1).strip()
    if not _is_sentence(text):
        yield from _expression(text)
    elif tail and not _is_sentence(tail):
        yield from _expression(tail)
    else:
        yield from _NUMBER.findall(text)[-1:]


def words(answer: str) -> str | None:
    """An answer in words as it is compared: what LaTeX puts around them, case and outer signs do not count; None where
    it holds anything but words, or fewer than three letters."""
    text = tidied(answer)
    inner = boxes(text) or [next(filter(None, match.groups())) for match in _MATH.finditer(text)]
    text = _WRAPPED.sub(r"\1", inner[-1] if inner else text).strip(" \t\n.,;:!*\"'`")
    return " ".join(text.casefold().split()) if _WORDS.fullmatch(text) and not _PI.fullmatch(text) else None


def tidied(text: str) -> str:
    """Full-width signs, odd minus signs and blanks as plain ones; of a long text its end."""
    return text[-LONGEST:].translate(_SIGNS).replace("**$", "$").replace("$**", "$").strip()


def boxes(text: str) -> list[str]:
    r"""What stands in each outermost `\boxed{...}` that is closed."""
    opened: list[int | None] = []  # of each open brace, where the content of its box begins
    found: list[tuple[int, int]] = []
    for brace in _BRACES.finditer(text):
        if brace[0] == "{":
            opened.append(None)
        elif brace[0].endswith("{") and brace[0] != r"\{":
            opened.append(brace.end())
        elif brace[0] == "}" and opened and (begin := opened.pop()) is not None:
            while found and found[-1][0] > begin:
                found.pop()
            found.append((begin, brace.start()))
    return [text[begin:end] for begin, end in found]


def _expression(text: str) -> Iterator[str]:
    """An expression, without its unit where math-verify would not know it, and the last item where it is a list."""
    text = _latex(text).strip()
    if (unit := _OF_MEASURE.search(text)) is not None:
        value = text[: unit.start()]
        if _DIGIT.search(value) and not _LETTER.search(value):
            yield value
            return
    items = _JOINT.split(text)
    yield ", ".join(items)
    if len(items) > 1 and not text.startswith(("(", "[", r"\{", r"\left", r"\begin")):
        yield items[-1]


def _latex(text: str) -> str:
    """A plain expression as LaTeX; LaTeX stays as it is."""
    text = _GROUPS.sub(lambda number: _GROUPING.sub("", number[0]), text)
    for sign, latex in _LATEX:
        text = text.replace(sign, latex)
    text = _PERCENT.sub(r"\\%", text)
    text = _ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2]}}}", text)
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", _PI.sub(r"\\pi ", text))
    return _POWER_OF_TEN.sub(r"\1\\cdot 10^{\2}", text)


def _is_sentence(text: str) -> bool:
    return any(_WORD.search(_COMMAND.sub("", item)) for item in _JOINT.split(text))
