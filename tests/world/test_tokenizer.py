from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoProcessor

from mmsearch_trl.world.emblems import Emblem, draw
from mmsearch_trl.world.tokenizer import SPECIAL_TOKENS, TAGS, build_processor, build_tokenizer
from mmsearch_trl.world.world import CITIES, SYLLABLES, YEARS, Fact


TOKENIZER = build_tokenizer()


def encode(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def test_every_word_of_the_world_is_one_token_after_a_space() -> None:
    words = [f" {word}" for word in (*SYLLABLES, *CITIES, *YEARS)]
    assert {word: len(encode(word)) for word in words} == dict.fromkeys(words, 1)
    assert len({encode(word)[0] for word in words}) == len(words)


@pytest.mark.parametrize("fact", list(Fact))
def test_a_question_is_one_token_per_word_and_one_for_the_mark(fact: Fact) -> None:
    assert len(encode(f" {fact.question}")) == len(fact.question.split()) + 1


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_is_one_token_that_decoding_keeps(tag: str) -> None:
    assert len(encode(tag)) == 1
    assert TOKENIZER.decode(encode(tag), skip_special_tokens=True) == tag


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_a_control_token_is_special(token: str) -> None:
    assert encode(token) == [TOKENIZER.convert_tokens_to_ids(token)]
    assert TOKENIZER.decode(encode(token), skip_special_tokens=True) == ""


def test_a_value_keeps_its_tokens_inside_tags() -> None:
    tokens = TOKENIZER.convert_ids_to_tokens(encode("<answer> Bel Tor</answer><|im_end|>"))
    assert tokens == ["<answer>", "ĠBel", "ĠTor", "</answer>", "<|im_end|>"]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_encoding(text: str) -> None:
    assert TOKENIZER.decode(encode(text)) == text


def test_the_processor_reloads_from_disk_unchanged(tmp_path: Path) -> None:
    processor = build_processor()
    processor.save_pretrained(tmp_path)
    reloaded = AutoProcessor.from_pretrained(tmp_path)
    pictures = [draw(Emblem(0, 1, 2, 3)), draw(Emblem(0, 1, 2, 3), 28)]
    text = "<|im_start|>user\n<|image_pad|> what <|image_pad|><reason> Bel Tor</reason>"
    both: tuple[Any, ...] = (processor, reloaded)
    ours, theirs = (p(text=[text], images=pictures, return_tensors="pt") for p in both)
    assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
    assert ours["image_grid_thw"].tolist() == theirs["image_grid_thw"].tolist() == [[1, 4, 4], [1, 2, 2]]
    assert (ours["pixel_values"] - theirs["pixel_values"]).abs().max() < 1e-5
    assert (ours["input_ids"] == processor.image_token_id).sum() == 4 + 1
    assert reloaded.tokenizer.all_special_ids == processor.tokenizer.all_special_ids
    assert reloaded.tokenizer.eos_token == "<|im_end|>" and reloaded.tokenizer.pad_token == "<|endoftext|>"


def test_the_template_frames_images_as_qwen_does() -> None:
    content = [{"type": "image"}, {"type": "text", "text": " what is its name?"}]
    messages: list[Any] = [{"role": "user", "content": content}]
    text = build_processor().apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|> what is its name?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
