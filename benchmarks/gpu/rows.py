"""Random rows with the lengths of multi-turn search trajectories, drawn from a seed.

A prompt has instructions and one image, and is shared by a group. A trajectory answers at once (30 %), after an
image search (25 %), after a text search (20 %) or after both (25 %). Turns have 60 to 220 tokens; an image search
brings 3 to 5 thumbnails with titles, a text search 240 to 750 tokens of passages. All of it is assumed, not measured.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


MERGE = 2
"""Patches per token along each side of an image."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Ids for text, `first` up to `last`, and those around an image."""

    first: int
    last: int
    image_pad: int
    vision_start: int
    vision_end: int

    @classmethod
    def of(cls, config: Any, first: int, last: int) -> "Vocabulary":
        return cls(first, last, config.image_token_id, config.vision_start_token_id, config.vision_end_token_id)


@dataclass(slots=True)
class Row:
    """One trajectory: `scored` is 1 on sampled completion tokens; `grids` has (1, height, width) in patches."""

    prompt: list[int] = field(default_factory=list)
    completion: list[int] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)
    grids: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.completion


class Writer:
    """Draws rows; `scale` shrinks every length, and images by area."""

    def __init__(self, vocabulary: Vocabulary, *, seed: int, scale: float = 1.0) -> None:
        self._vocabulary = vocabulary
        self._rng = random.Random(seed)
        self._scale = scale

    def rows(self, count: int, group: int) -> list[Row]:
        """`group` rows per prompt."""
        drawn: list[Row] = []
        while len(drawn) < count:
            prompt = Row()
            prompt.prompt += [*self._text(250, 400), *self._image(prompt, 12, 28)]
            drawn += [self._trajectory(prompt) for _ in range(group)]
        return drawn[:count]

    def with_images(self, images: Sequence[int]) -> list[Row]:
        """A row for each count, with that many images: one in the prompt, if any, and the others in one reply."""
        return [self._reply_of(count) for count in images]

    def _trajectory(self, prompt: Row) -> Row:
        row = Row(prompt=list(prompt.prompt), grids=list(prompt.grids))
        chance = self._rng.random()
        if 0.3 <= chance < 0.55 or chance >= 0.75:
            self._say(row)
            self._thumbnails(row, self._rng.randint(3, 5))
        if chance >= 0.55:
            self._say(row)
            self._hear(row, self._text(240, 750))
        self._say(row)
        return row

    def _reply_of(self, images: int) -> Row:
        row = Row()
        row.prompt += self._text(20, 200)
        if images:
            row.prompt += self._image(row, 5, 20)
        self._say(row)
        self._thumbnails(row, max(images - 1, 0))
        self._say(row)
        return row

    def _thumbnails(self, row: Row, count: int) -> None:
        for _ in range(count):
            self._hear(row, [*self._image(row, 5, 10), *self._text(15, 40)])

    def _say(self, row: Row) -> None:
        text = self._text(60, 220)
        row.completion += text
        row.scored += [1] * len(text)

    def _hear(self, row: Row, ids: list[int]) -> None:
        row.completion += ids
        row.scored += [0] * len(ids)

    def _text(self, shortest: int, longest: int) -> list[int]:
        count = max(round(self._rng.randint(shortest, longest) * self._scale), 1)
        return [self._rng.randrange(self._vocabulary.first, self._vocabulary.last) for _ in range(count)]

    def _image(self, row: Row, smallest: int, largest: int) -> list[int]:
        height, width = (max(round(self._rng.randint(smallest, largest) * self._scale**0.5), 1) for _ in range(2))
        row.grids.append((1, height * MERGE, width * MERGE))
        known = self._vocabulary
        return [known.vision_start, *[known.image_pad] * (height * width), known.vision_end]


def padded(
    rows: Sequence[Row], image_pad: int, *, channels: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Any]:
    """The rows as TRL lays out a generation batch: prompts padded on the left, completions on the right.

    Pixels are random, `(patches, channels)` in `dtype`.
    """
    prompt_ids, prompt_mask = _pad([row.prompt for row in rows], left=True)
    completion_ids, completion_mask = _pad([row.completion for row in rows], left=False)
    tool_mask, _ = _pad([row.scored for row in rows], left=False)
    batch: dict[str, Any] = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "tool_mask": tool_mask,
        "mm_token_type_ids": (torch.cat([prompt_ids, completion_ids], dim=1) == image_pad).long(),
        "num_images": [len(row.grids) for row in rows],
    }
    grids = torch.tensor([grid for row in rows for grid in row.grids], dtype=torch.long).view(-1, 3)
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(int(grids.prod(dim=1).sum()), channels, generator=generator)
    return batch | {"image_grid_thw": grids, "pixel_values": patches.to(dtype)}


def _pad(rows: Sequence[Sequence[int]], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(row) for row in rows)
    values, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(len(row))
        values[i, place] = torch.tensor(row)
        mask[i, place] = 1
    return values, mask
