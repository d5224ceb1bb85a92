"""When an answer counts as right: exact match or containment, after SQuAD-style normalisation.

Normalisation is deliberately no cleverer than the published reward, so that scores compare: lower case, ASCII
punctuation deleted without a space, the words a/an/the blanked, white space collapsed. Nothing else is folded: `3.14`
equals `314`, `well-known` differs from `well known`, and curly quotes, CJK punctuation and Unicode forms are kept.
"""

import re
import string
from collections.abc import Iterable
from typing import Literal


RewardMode = Literal["EM", "SubEM"]

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Bring an answer to the form in which it is compared: `The "Titanic"!` becomes `titanic`."""
    without_punctuation = text.lower().translate(_DELETE_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", without_punctuation).split())


def exact_match(answer: str, golds: Iterable[str]) -> bool:
    """True when the normalised answer equals any normalised gold; no gold matches nothing."""
    normalized = normalize_answer(answer)
    return any(normalize_answer(gold) == normalized for gold in golds)


def substring_match(answer: str, golds: Iterable[str]) -> bool:
    """True when any normalised gold occurs in the normalised answer; a gold that normalises to "" occurs in all."""
    normalized = normalize_answer(answer)
    return any(normalize_answer(gold) in normalized for gold in golds)


def is_right(answer: str | None, golds: Iterable[str], mode: RewardMode) -> bool:
    """Whether there is an answer and it matches a gold one, in whole (EM) or in part (SubEM)."""
    matches = exact_match if mode == "EM" else substring_match
    return answer is not None and matches(answer, golds)
