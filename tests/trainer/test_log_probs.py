"""What goes through the model, and where values come back; that they are the right values is invariant 4."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl.trainer import utils

from mmsearch_trl.trainer.blank_picture import BlankPicture
from mmsearch_trl.trainer.log_probs import ScoredBatch, score_tokens


PROMPT, COMPLETION = 7, 9
ROWS = st.lists(
    st.tuples(st.integers(1, PROMPT), st.integers(1, COMPLETION), st.integers(0, 3)), min_size=1, max_size=6
)


def _batch(rows: list[tuple[int, int, int]]) -> ScoredBatch:
    """Token j of row i is `100 * (i + 1) + j`; its images hold i; odd completion tokens are scored."""
    ids = torch.zeros(len(rows), PROMPT + COMPLETION, dtype=torch.long)
    score = torch.zeros(len(rows), COMPLETION, dtype=torch.long)
    grids, patches = [], []
    for i, (prompt, completion, images) in enumerate(rows):
        ids[i, PROMPT - prompt : PROMPT + completion] = 100 * (i + 1) + torch.arange(prompt + completion)
        score[i, 1:completion:2] = 1
        for image in range(images):
            grids.append([1, 1, image + 1])
            patches += [float(i)] * (image + 1)
    counts = [images for _, _, images in rows]
    return ScoredBatch(
        input_ids=ids,
        attention_mask=(ids > 0).long(),
        score_mask=score,
        pixel_values=torch.tensor(patches)[:, None] if patches else None,
        image_grid_thw=torch.tensor(grids) if grids else None,
        num_images=counts if grids else None,
        mm_token_type_ids=(ids % 3 == 0).long(),
    )


class _Echo:
    """In the place of a model: a label's log-prob is its id times `scale`."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.scale = torch.ones((), requires_grad=True)

    def __call__(self, *, fused_lm_head: bool, **inputs: Any) -> Any:
        assert fused_lm_head
        self.calls.append(inputs)
        labels = inputs["labels"][:, 1:]
        values = labels.masked_fill(labels == -100, 0).float() * self.scale
        return SimpleNamespace(log_probs=values, entropy=2 * values)


@given(rows=ROWS, size=st.integers(1, 7))
def test_values_come_back_at_their_tokens(rows: list[tuple[int, int, int]], size: int) -> None:
    batch, model = _batch(rows), _Echo()
    log_probs, entropies = score_tokens(model, batch, chunk=size, entropy=True)
    expected = (batch.input_ids[:, PROMPT:] * batch.score_mask).float()
    torch.testing.assert_close(log_probs, expected)
    torch.testing.assert_close(entropies, 2 * expected)
    log_probs.sum().backward()
    assert model.scale.grad == expected.sum()


@given(rows=ROWS, size=st.integers(1, 7))
def test_a_chunk_is_as_wide_as_its_longest_row_and_chunks_hold_like_lengths(
    rows: list[tuple[int, int, int]], size: int
) -> None:
    model = _Echo()
    score_tokens(model, _batch(rows), chunk=size, entropy=False)
    lengths = sorted((prompt + completion for prompt, completion, _ in rows), reverse=True)
    widths = [call["input_ids"].shape for call in model.calls]
    assert widths == [(len(lengths[i : i + size]), lengths[i]) for i in range(0, len(lengths), size)]
    for call in model.calls:
        assert torch.equal(call["attention_mask"], (call["input_ids"] > 0).long())
        assert torch.equal(call["mm_token_type_ids"], (call["input_ids"] % 3 == 0).long())
        lengths_of_rows = call["attention_mask"].sum(dim=1)
        assert all(row[:length].all() for row, length in zip(call["attention_mask"], lengths_of_rows, strict=True))


@given(rows=ROWS, size=st.integers(1, 7))
def test_images_go_with_their_rows(rows: list[tuple[int, int, int]], size: int) -> None:
    model = _Echo()
    score_tokens(model, _batch(rows), chunk=size, entropy=False)
    for call in model.calls:
        expected = [int(row[0]) // 100 - 1 for row in call["input_ids"]]
        patches = [i for i in expected for image in range(rows[i][2]) for _ in range(image + 1)]
        assert ("pixel_values" in call) == ("image_grid_thw" in call) == bool(patches)
        if patches:
            assert call["pixel_values"].flatten().tolist() == patches
            assert call["image_grid_thw"].prod(dim=1).tolist() == [
                image + 1 for i in expected for image in range(rows[i][2])
            ]


@given(rows=ROWS, size=st.integers(1, 7))
def test_with_a_blank_picture_each_chunk_has_one_and_values_stay(rows: list[tuple[int, int, int]], size: int) -> None:
    batch, model = _batch(rows), _Echo()
    grid, patches = torch.tensor([1, 2, 2]), torch.full((4, 1), 77.0)
    blank = BlankPicture(pixel_values=patches, grid_thw=grid, num_tokens=1, image_pad_id=7, pad_id=1)
    log_probs, entropies = score_tokens(model, replace(batch, blank=blank), chunk=size, entropy=True)
    torch.testing.assert_close(log_probs, (batch.input_ids[:, PROMPT:] * batch.score_mask).float())
    torch.testing.assert_close(entropies, 2 * log_probs)
    for call in model.calls:
        blanks = int((call["pixel_values"] == 77.0).sum())
        assert blanks in (0, 4) and int((call["input_ids"] == 7).sum()) == blanks // 4
        assert (blanks == 0) == any(rows[int(row[0]) // 100 - 1][2] for row in call["input_ids"])
        if blanks:
            shape = call["input_ids"].shape
            assert all(call[name].shape == shape for name in ("attention_mask", "labels", "mm_token_type_ids"))
            assert not call["attention_mask"][:, -1].any() and (call["labels"][:, -1] == -100).all()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_on_a_gpu_the_lm_head_sees_scored_tokens_only(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere TRL projects every position and blanks the values afterwards."""
    model = tiny.FAMILIES[family]().model()
    utils.add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    ids = torch.randint(20, 60, (3, PROMPT + COMPLETION))
    score = (torch.rand(3, COMPLETION) < 0.4).long()
    batch = ScoredBatch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        score_mask=score,
        pixel_values=None,
        image_grid_thw=None,
        num_images=None,
        mm_token_type_ids=torch.zeros_like(ids),
    )
    project, seen = utils._ChunkedLogProbFunction.apply, []

    def spy(hidden: torch.Tensor, *arguments: Any) -> Any:
        seen.append(len(hidden))
        return project(hidden, *arguments)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", SimpleNamespace(apply=spy))
    everywhere, _ = score_tokens(model, batch, chunk=3, entropy=True)
    monkeypatch.setattr(utils, "_use_triton", lambda device: True)
    scored, _ = score_tokens(model, batch, chunk=3, entropy=True)
    assert seen == [3 * (PROMPT + COMPLETION - 1), int(score.sum())]
    torch.testing.assert_close(scored, everywhere)
    assert not scored[score == 0].any() and scored[score == 1].all()
