"""Whatever a page, a server or a model writes is read in time that grows with its length and no faster.

So is all other text: every regular expression of the package is tried, whoever writes what it reads.
"""

import ast
import importlib
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import toy
from hostile import families
from hypothesis import given
from hypothesis import strategies as st
from parsed import nodes

import mmsearch_trl
from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.observation import Observation, TextHit
from mmsearch_trl.core.redaction import redacted
from mmsearch_trl.core.tags import enclosed
from mmsearch_trl.engine import vllm_client
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.protocol.mmsearch import MMSearchProtocol, _fill
from mmsearch_trl.protocol.prompt_files import Prompts
from mmsearch_trl.protocol.safe_text import SafeText
from mmsearch_trl.protocol.search_r1 import SearchR1Protocol
from mmsearch_trl.protocol.tool import called
from mmsearch_trl.protocol.upstream_mmsearch import UpstreamMMSearchProtocol
from mmsearch_trl.rewards import format as form
from mmsearch_trl.rewards import search_r1
from mmsearch_trl.rewards.matching import normalize_answer
from mmsearch_trl.search.query import normalise_query
from mmsearch_trl.search.text.summarisers import _THOUGHT, excerpt
from mmsearch_trl.search.web.addresses import check_host
from mmsearch_trl.tools.crop import CropCall


SOURCE = Path(mmsearch_trl.__file__).parent
TEXTS: dict[str, Callable[[int], str]] = {
    "an opening and blanks": lambda n: "<" + " " * n + "x",
    "an opening, a slash and blanks": lambda n: "<" + " " * n + "/" + "\t" * n + "x",
    "marked blanks": lambda n: "<" + "\u2581 " * n + "x",
    "openings": lambda n: "<" * n,
    "openings and blanks": lambda n: "< " * n,
    "closings": lambda n: "</" * n,
    "bars": lambda n: "<|" * n,
    "tokens that begin": lambda n: "<unused" * n,
    "headers that begin": lambda n: "<|start_header_id" * n,
    "role marks that begin": lambda n: "[INST<<SYS>" * n,
    "combining marks": lambda n: "a" + "\u0301\u0327" * n,
    "one character that is eighteen": lambda n: "\ufdfa" * n,
    "full-width openings": lambda n: "\uff1c " * n,
    **{
        f"<{tag}>": lambda n, tag=tag: f"<{tag}>" * n for tag in ("answer", "search", "text_search", "reason", "think")
    },
    **{f"</{tag}>": lambda n, tag=tag: f"</{tag}>" * n for tag in ("answer", "search", "information")},
    "pairs that do not fit": lambda n: "<search></answer>" * n,
    "pairs that fit too late": lambda n: "<answer></search>" * n + "</answer>",
    "calls that do not end": lambda n: "<text_search></text_search>a" * n,
    "one call, opened often": lambda n: "<text_search>" * n + "</text_search>",
    "results that do not end": lambda n: "<information>" * n,
    "a transcript": lambda n: "<think>a</think><search>b</search><information>c</information>" * n,
    "a transcript and blanks": lambda n: "<think>a</think>" + " " * n + "x",
    "a thought and blanks": lambda n: "<think>" + " \n" * n,
    "a box with blanks": lambda n: "1 [1" + " " * n + "x",
    "a box with blanks at every place": lambda n: "1" + " [" + (" " * n + "1" + " " * n + ",") * 3 + " " * n + "x",
    "sentences": lambda n: ". " * n,
    "blanks": lambda n: " " * n,
    "line breaks": lambda n: "\n" * n,
    "dots": lambda n: "." * n,
    "words": lambda n: "the a " * n,
    "braces": lambda n: "{" * n + "a" * n,
    "addresses of data": lambda n: "data:" * n,
    "an address of data": lambda n: "data:" + "a" * n + ";base64" * n,
    "digits": lambda n: "0x" + "f" * n + "g",
    "options": lambda n: "--api-key " * n,
    "an option and blanks": lambda n: "--api-key" + " " * n + "x",
    "assignments": lambda n: "api_key=" * n,
    "addresses with users": lambda n: "http://a:b" * n,
    "parameters": lambda n: "?key=" * n,
    "thoughts": lambda n: "</think" * n,
}


def _tokenizer_of_thousands() -> Any:
    tokenizer = families.gemma()
    tokenizer.add_tokens([f"<unused{number}>" for number in range(99, 6242)])
    return tokenizer


CHAT = ChatEncoder(toy.build_processor())
UPSTREAM = UpstreamMMSearchProtocol(toy.build_processor(), Prompts.load())
READERS: dict[str, dict[str, Callable[[str], object]]] = {
    "protocol/safe_text.py": {
        "Qwen": SafeText(families.qwen()),
        "Llama": SafeText(families.llama()),
        "thousands of tokens": SafeText(_tokenizer_of_thousands()),
        "NFKC": SafeText(families.gemma(families.normalizers.NFKC())),
    },
    "core/redaction.py": {"text": redacted},
    "core/tags.py": {"enclosed": lambda text: list(enclosed(text, "answer"))},
    "protocol/mmsearch.py": {
        "turn": MMSearchProtocol(CHAT, Prompts.load()).read,
        "upstream's": UPSTREAM.read,
        "slots": lambda text: _fill(text, {}),
        "call of a tool": lambda text: called("crop", text),
    },
    "protocol/search_r1.py": {"turn": SearchR1Protocol(CHAT).read},
    "rewards/format.py": {
        "answer": form.extract_answer,
        "form": form.well_formed_action,
        "single search": form.single_search_valid,
    },
    "rewards/matching.py": {"normal form": normalize_answer},
    "rewards/search_r1.py": {
        "answer": lambda text: search_r1.extract_answer([text]),
        "structure": search_r1.structure_valid,
        "retrieved": lambda text: search_r1.retrieved(text, ["a"]),
    },
    "tools/crop.py": {"box": CropCall.parse},
    "search/text/summarisers.py": {
        "excerpt": lambda text: excerpt("the a", text),
        "thought": lambda text: _THOUGHT.sub("", text),
    },
    "search/web/addresses.py": {"host": lambda text: _refused(check_host, text)},
    "search/runtime.py": {"query": normalise_query},
    "engine/vllm_client.py": {"a server's words": vllm_client._quoted},
}


def _refused(check: Callable[[str], None], text: str) -> bool:
    try:
        check(text)
    except SearchError:
        return True
    return False


MEASURED = 0.02
"""Seconds; what takes less is not compared, and so not measured again."""


def _seconds(read: Callable[[str], object], text: str) -> float:
    best = float("inf")
    for _ in range(3):
        start = time.process_time()  # of this process alone: what else the machine does is no matter
        signal.alarm(30)
        read(text)
        signal.alarm(0)
        best = min(best, time.process_time() - start)
        if not MEASURED < best < 1.0:
            break
    return best


@pytest.fixture(autouse=True)
def no_endless_match() -> Iterator[None]:
    """A test fails where a match would go on for hours."""

    def give_up(*_: object) -> None:
        raise AssertionError("no end after 30 s")

    before = signal.signal(signal.SIGALRM, give_up)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _expressions() -> Iterator[tuple[str, re.Pattern[Any], str]]:
    """Every regular expression of the package, with a method by which it is used, and where."""
    for path in sorted(SOURCE.rglob("*.py")):
        where, named = path.relative_to(SOURCE).as_posix(), set[str]()
        for node in nodes(path):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS):
                continue
            method, of = node.func.attr, ast.unparse(node.func.value)
            first = node.args[0] if node.args else None
            if of == "re" and isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield where, re.compile(first.value), method
            elif of.lstrip("_").isupper():
                named.add(f"{of}.{method}")
        if named:
            module = importlib.import_module(f"mmsearch_trl.{where.removesuffix('.py').replace('/', '.')}")
            for use in sorted(named):
                name, _, method = use.partition(".")
                if isinstance(expression := getattr(module, name, None), re.Pattern):
                    yield where, expression, method


METHODS = ("search", "match", "fullmatch", "findall", "finditer", "split", "sub")
EXPRESSIONS = list(_expressions())


def test_the_regular_expressions_are_found() -> None:
    found = {where for where, _, _ in EXPRESSIONS}
    assert found >= {"search/text/summarisers.py", "rewards/search_r1.py", "tools/crop.py", "core/text.py"}


@pytest.mark.parametrize(
    ("where", "expression", "method"),
    EXPRESSIONS,
    ids=[f"{where}-{expression.pattern[:20]!a}-{method}" for where, expression, method in EXPRESSIONS],
)
def test_every_regular_expression_is_linear(where: str, expression: re.Pattern[Any], method: str) -> None:
    """On what is hard for others, and on what it is made of itself."""
    source = expression.pattern
    of_bytes = isinstance(source, bytes)
    arguments = (b"" if of_bytes else "",) if method == "sub" else ()

    def use(text: str) -> None:
        result = getattr(expression, method)(*arguments, text.encode("utf-8") if of_bytes else text)
        if method == "finditer":
            list(result)

    own = dict.fromkeys(
        re.findall(r"[\w</>:=.,;-]+", (source.decode("latin-1") if of_bytes else source).replace("\\", ""))
    )
    texts = dict(TEXTS)
    for piece in list(own)[:8]:
        texts[f"{piece!r} again and again"] = lambda n, piece=piece: piece * n
        texts[f"{piece!r} and blanks"] = lambda n, piece=piece: (piece + " " * n) * 2 + "!"
        texts[f"{piece!r} and letters"] = lambda n, piece=piece: (piece + "a" * n) * 2 + "!"
    _assert_linear(use, texts)


@pytest.mark.parametrize(("file", "reader"), [(file, reader) for file in READERS for reader in READERS[file]])
def test_twice_the_text_takes_twice_the_time(file: str, reader: str) -> None:
    _assert_linear(READERS[file][reader], TEXTS)


def _assert_linear(read: Callable[[str], object], texts: Mapping[str, Callable[[int], str]]) -> None:
    for name, make in texts.items():
        four_times = _seconds(read, make(4_000))
        if four_times > MEASURED:
            once, twice = (_seconds(read, make(1_000 * factor)) for factor in (1, 2))
            # The square would be sixteen times as long.
            assert four_times < 9 * once + MEASURED, (name, once, twice, four_times)


TAGGED = st.lists(st.sampled_from(["<a>", "</a>", "<b>", "</b>", "x", "\n", "<a", ">"]), max_size=12).map("".join)


@given(TAGGED)
def test_enclosed_is_what_a_regular_expression_finds(text: str) -> None:
    assert list(enclosed(text, "a")) == re.findall(r"<a>(.*?)</a>", text, re.DOTALL)


@given(TAGGED)
def test_a_turn_of_search_r1_is_its_first_pair(text: str) -> None:
    text = text.replace("<a", "<search").replace("</a", "</search").replace("<b", "<answer").replace("</b", "</answer")
    found = re.search(r"<(search|answer)>(.*?)</\1>", text, re.DOTALL)
    kind = {"search": ActionKind.TEXT_SEARCH, "answer": ActionKind.ANSWER}
    expected = Action(kind[found[1]], found[2].strip()) if found else Action(ActionKind.NONE)
    assert SearchR1Protocol(CHAT).read(text) == expected


@given(TAGGED, st.sampled_from(["", "\n", "\n\n", " "]))
def test_a_turn_ends_in_a_text_search_where_upstream_s_expression_matches(text: str, end: str) -> None:
    text = text.replace("<a", "<text_search").replace("</a", "</text_search") + end
    expected = None
    if re.search(r"<text_search>.*</text_search>$", text):
        expected = re.findall(r"<text_search>(.*?)</text_search>", text)[-1]
    action = UPSTREAM.read(text)
    assert (action.text if action.kind is ActionKind.TEXT_SEARCH else None) == (expected or None)


@pytest.mark.parametrize("length", [100, 101, 102, 103])
def test_a_page_of_replacement_characters_is_kept(length: int) -> None:
    """Only what a cut leaves of one character is taken away, not what stood in the page."""
    protocol = SearchR1Protocol(CHAT, max_observation_tokens=length)
    [task] = tiny.tasks(1)
    observation = Observation(tool=ActionKind.TEXT_SEARCH, hits=(TextHit("t", "\ufffd" * 500),))
    reply = protocol.reply(observation, task, ())
    assert len(reply.token_ids) >= length - 4
    assert str(reply.parts[0]).endswith("</information>\n\n")
