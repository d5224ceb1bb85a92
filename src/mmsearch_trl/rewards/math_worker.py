r"""Judges answers to mathematical questions by math-verify, as a job of a process which may be killed over it.

A job (`judging.py`) is JSON and so is its answer. math-verify's own time limits are switched off: they work by an
alarm that cannot interrupt a computation in C, and the process is killed instead (`verify_pool.py`). What models write
is parsed by a grammar of LaTeX alone, and never evaluated as Python.
"""

import json
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify

from mmsearch_trl.rewards.final_answer import readings, words
from mmsearch_trl.rewards.judging import Job
from mmsearch_trl.rewards.option_letter import option_in, option_of, options_in, options_of


def judge(job: bytes) -> bytes:
    """Runs in the worker; the answer is a JSON boolean."""
    wanted = Job(**json.loads(job))
    if wanted.task == "right":
        said = any(_right(wanted.answer, gold) for gold in wanted.golds)
    elif wanted.task == "gold":
        said = all(map(_readable, wanted.golds))
    else:
        said = (_lmm_r1 if wanted.task == "lmm_r1" else _r1_v)(wanted.answer, wanted.golds[0])
    return json.dumps(said).encode()


def _right(answer: str, gold: str) -> bool:
    if (several := options_of(gold)) is not None:
        return options_in(answer) == several or _same(answer, gold)  # "AC" may be a product
    if (option := option_of(gold)) is None:
        return _same(answer, gold)
    letter, text = option
    if (said := option_in(answer)) is not None:
        return said == letter
    return bool(text) and _same(answer, text)


def _same(answer: str, gold: str) -> bool:
    if (wanted := words(gold)) is not None:
        return words(answer) == wanted
    right = next(filter(None, map(_values, readings(gold))), [])
    return any(verify(right, _values(reading), timeout_seconds=None) for reading in dict.fromkeys(readings(answer)))


def _readable(gold: str) -> bool:
    several = options_of(gold) is not None
    return several or option_of(gold) is not None or words(gold) is not None or any(map(_values, readings(gold)))


def _values(latex: str) -> list[Any]:
    """What LaTeX means, as expressions of sympy; empty where that is not known."""
    return parse(f"${latex}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)  # pyright: ignore[reportArgumentType]


def _lmm_r1(response: str, label: str) -> bool:
    """As LMM-R1: the whole response is read, boxes first, and a label that cannot be read makes everything right.

    Its arguments of `verify` are the other way round, which changes what intervals and assignments equal.
    """
    label = label if label.startswith("$") else f"${label}$"
    gold: list[Any] = parse(
        label,
        [LatexExtractionConfig()],
        extraction_mode="first_match",
        parsing_timeout=None,  # pyright: ignore[reportArgumentType]
    )
    if not gold:
        return True
    strict = NormalizationConfig(nits=False, malformed_operators=False, basic_latex=True, boxed="all", units=True)
    answer: list[Any] = parse(
        response,
        [LatexExtractionConfig(normalization_config=strict, boxed_match_priority=0, try_extract_without_anchor=False)],
        extraction_mode="first_match",
        parsing_timeout=None,  # pyright: ignore[reportArgumentType]
    )
    return verify(answer, gold, timeout_seconds=None)


def _r1_v(response: str, solution: str) -> bool:
    """As R1-V's first look: the whole response, and `verify` the other way round."""
    answer, gold = (parse(text, parsing_timeout=None) for text in (response, solution))  # pyright: ignore[reportArgumentType]
    return verify(answer, gold, timeout_seconds=None)
