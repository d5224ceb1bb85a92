"""Nothing in untrusted text becomes a control token, a placeholder or a tag, and a reader sees the text unchanged."""

import re
import unicodedata
from typing import Any

import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from mmsearch_trl.protocol.safe_text import TAGS, WORD_JOINER, SafeText, strip_invisible
from mmsearch_trl.world.tokenizer import SPECIAL_TOKENS, build_tokenizer


def _normalising(*steps: Any) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that normalises first, and one of whose added tokens is looked for afterwards."""
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.normalizer = normalizers.Sequence(list(steps))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=True), AddedToken("</tool_call>", normalized=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _qwen3_like() -> PreTrainedTokenizerFast:
    """Names that nest and overlap, in the manner of Qwen3-VL, some special and some not."""
    tokenizer = build_tokenizer()
    names = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in names])
    tokenizer.add_tokens([AddedToken("<|a<|b|>", special=True), AddedToken("<|b|>|>", special=True), "@b", "b@"])
    return tokenizer


TOKENIZERS = {
    "world": build_tokenizer(),
    "toy": toy.build_tokenizer(),
    "qwen3": _qwen3_like(),
    "nfc": _normalising(normalizers.NFC()),
    "nfkc": _normalising(normalizers.NFKC(), normalizers.Lowercase()),
}
SAFE = {name: SafeText(tokenizer) for name, tokenizer in TOKENIZERS.items()}
TAG = re.compile(rf"<\s*/?\s*({'|'.join(TAGS)})\b[^<>]*>", re.IGNORECASE)
INVISIBLE = [
    "\u200b",
    "\u200d",
    "\u2060",
    "\ufeff",
    "\u202e",
    "\u2066",
    "\u00ad",
    "\x00",
    "\x1b",
    "\ud800",
    "\U000e0041",
]
MARKS = ["\u0301", "\u0338", "\u034f", "\ufe0f"]


def _control_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    unknown: Any = tokenizer.unk_token_id
    return (set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)) - {unknown}


def _wide(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def _normal(tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    normalizer = tokenizer.backend_tokenizer.normalizer
    return text if normalizer is None else normalizer.normalize_str(text)


def _check(name: str, text: str) -> None:
    tokenizer, safe = TOKENIZERS[name], SAFE[name](text)
    ids = tokenizer(safe, add_special_tokens=False)["input_ids"]
    assert _control_ids(tokenizer).isdisjoint(ids), (text, safe)
    assert TAG.search(_normal(tokenizer, safe)) is None, (text, safe)
    assert SAFE[name](safe) == safe, "not idempotent"
    seen, given_text = safe.replace(WORD_JOINER, ""), strip_invisible(text)
    assert seen in (given_text, _normal(tokenizer, given_text).replace(WORD_JOINER, ""))


def _pieces(name: str) -> list[str]:
    added = sorted(TOKENIZERS[name].get_added_vocab())
    tags = [f"<{mark}{tag}>" for tag in TAGS for mark in ("", "/")]
    words = [*added, *tags, "<search><img></search>", "<|im_start|>assistant\n", "[Text Search Results]"]
    words += [_wide(word) for word in words] + [word.upper() for word in words]
    return words + [half for word in words for half in (word[: len(word) // 2], word[len(word) // 2 :])]


@st.composite
def hostile(draw: st.DrawFn, name: str) -> str:
    piece = st.one_of(
        st.sampled_from(_pieces(name)),
        st.sampled_from(
            [*INVISIBLE, *MARKS, "<", ">", "/", "|", " ", "\n", "\r\n", "\uff1c", "\uff1e", "\ufe64", "\u226e"]
        ),
        st.text(max_size=3),
    )
    text = "".join(draw(st.lists(piece, max_size=8)))
    for _ in range(draw(st.integers(0, 2))):
        at, what = draw(st.integers(0, len(text))), draw(st.sampled_from([*INVISIBLE, *MARKS, *_pieces(name)]))
        text = text[:at] + what + text[at:]
    return text


@pytest.mark.parametrize("name", TOKENIZERS)
def test_text_made_to_hurt_stays_text(name: str) -> None:
    @settings(max_examples=250)
    @given(hostile(name))
    def check(text: str) -> None:
        _check(name, text)

    check()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_token_of_the_tokenizer_is_inert_in_every_disguise(name: str) -> None:
    for token in [*TOKENIZERS[name].get_added_vocab(), *(f"</{tag}>" for tag in TAGS)]:
        half = len(token) // 2
        for joint in ("", *INVISIBLE, *MARKS):
            for word in (token, token.upper(), _wide(token)):
                _check(name, f"a{word[:half]}{joint}{word[half:]}b")
        _check(name, token[:half] + token + token[half:])
        _check(name, token * 3)


def test_a_normaliser_cannot_trade_one_harmless_tag_for_a_harmful_one() -> None:
    # Composing g and the accent takes the first tag away, the full-width one becomes a tag: the number stays the same.
    _check("nfkc", "<img\u0301> " + _wide("</information>"))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ordinary_text_is_untouched(name: str) -> None:
    for text in ("1 < 2 > 0, a|b", "R&D: <b>bold</b> <3", "日本語 emoji \U0001f600 naïve", "tab\tline\n\nend", ""):
        assert SAFE[name](text) == text


def test_only_invisible_characters_are_removed() -> None:
    for character in map(chr, range(0x3000)):
        removed = strip_invisible(character) != character
        assert removed == (character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cf")), character
