"""Vision towers that attend to all windows at once see what transformers' loop over them sees."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from model_families import FAMILIES, Family, qwen25
from small_lm import build_model, build_tokenizer
from tiny import noise

from mmsearch_trl.models import vision_attention
from mmsearch_trl.models.vision_attention import ALL_WINDOWS, attend_to_all_windows


SIDES = ((90, 90), (200, 60), (28, 28), (90, 90), (310, 230))
"""Windows of several lengths, and images alike among them."""


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]()


def test_outputs_and_gradients_are_those_of_one_window_after_another(family: Family) -> None:
    images = [noise(width, height, random.Random(0)) for width, height in SIDES]
    seen = family.processor.image_processor(images, return_tensors="pt")
    model = family.model()
    tower = model.model.visual
    expected = tower(seen["pixel_values"], grid_thw=seen["image_grid_thw"]).pooler_output
    weight = next(p for name, p in tower.named_parameters() if "qkv.weight" in name)
    (gradient,) = torch.autograd.grad(torch.cat(list(expected)).square().mean(), weight)

    attend_to_all_windows(model)
    with counted_calls() as calls:
        found = tower(seen["pixel_values"], grid_thw=seen["image_grid_thw"]).pooler_output
    (found_gradient,) = torch.autograd.grad(torch.cat(list(found)).square().mean(), weight)

    torch.testing.assert_close(torch.cat(list(found)), torch.cat(list(expected)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_gradient, gradient, rtol=1e-4, atol=1e-6)
    assert len(calls) == tower.config.depth


def test_the_text_layers_and_what_is_saved_stay_as_they_are(family: Family) -> None:
    model = family.model()
    saved = model.config.to_json_string()
    attend_to_all_windows(model)
    assert model.config.vision_config._attn_implementation == ALL_WINDOWS
    assert model.config.get_text_config()._attn_implementation == "sdpa"
    assert model.config.to_json_string() == saved


def test_a_tower_of_another_attention_and_a_model_without_one_stay_as_they_are() -> None:
    eager = qwen25().model()
    eager.set_attn_implementation("eager")
    for model in (eager, build_model(build_tokenizer())):
        before = model.config._attn_implementation
        attend_to_all_windows(model)
        assert model.config._attn_implementation == before
    assert eager.config.vision_config._attn_implementation == "eager"


@contextmanager
def counted_calls() -> Iterator[list[int]]:
    """The lengths of `cu_seq_lens_q` of each call."""
    calls, original = [], vision_attention._all_windows

    def counting(*args: Any, cu_seq_lens_q: torch.Tensor, **keys: Any) -> Any:
        calls.append(len(cu_seq_lens_q))
        return original(*args, cu_seq_lens_q=cu_seq_lens_q, **keys)

    with patch.dict(vision_attention.AttentionInterface._global_mapping, {ALL_WINDOWS: counting}):
        yield calls
