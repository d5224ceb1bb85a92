"""What every scheduler has to roll out: questions, turns and tool times, all drawn from a seed.

The shape is that of a 7B search model, made smaller: half of the rollouts look their image up, some search text after
or instead, then they answer. Tool times are lognormal, text searches with the heavier tail, in the seconds that such
searches take in the world. A tiny model on a CPU needs another time than a 7B model on a GPU for its part, so the rig
scales tool times by its engine's speed (`rig.time_scale`): what is kept is the ratio of tool time to generation time.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.observation import ImageHit, TextHit
from mmsearch_trl.core.task import Task
from mmsearch_trl.protocol.mmsearch import IMAGE_SEARCH_TAG
from mmsearch_trl.world.emblems import QUERY_SIZE, THUMBNAIL_SIZE
from mmsearch_trl.world.world import CITIES, SYLLABLES, YEARS


GROUP = 8
"""Rollouts of one question, as in GRPO."""
P_IMAGE_SEARCH = 0.55
P_TEXT_SEARCH = 0.45
IMAGE_SEARCH_MEDIAN_S, IMAGE_SEARCH_SIGMA = 1.5, 0.8
TEXT_SEARCH_MEDIAN_S, TEXT_SEARCH_SIGMA = 8.0, 0.7
ENGINE_SECONDS_PER_ROLLOUT = 17.8 / 128
"""Of a 7B model on one H200 that rolls out this shape at its full size: prompts of 1.5 to 2.3 thousand tokens, results
of 1.5 to 2 thousand, 110 to 140 sampled a turn, an iteration of 3.2 ms and 0.05 ms a sequence. An estimate without a
shared first prefill; with it the model would be faster still, and tools would weigh more."""
QUESTION_WORDS = (200, 260)
TURN_WORDS = (100, 140)
IMAGE_RESULTS, IMAGE_RESULT_WORDS = 3, 50
TEXT_RESULTS, TEXT_RESULT_WORDS = 3, 60

WORDS = (*SYLLABLES, *CITIES, *YEARS)
"""Each is one token of the world's tokenizer when a space precedes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One rollout.

    Attributes:
        turns: What the model will say, turn by turn, without the token that ends a turn.
        query: Its text search, or None.
        seconds: Duration of its call of each tool beside a 7B model; a run scales it.
    """

    index: int
    group: int
    turns: tuple[str, ...]
    query: str | None
    seconds: dict[str, float]

    @property
    def id(self) -> str:
        return f"row{self.index}"


@dataclass(frozen=True, slots=True)
class _Group:
    """A question, its image, and the pages that show the image."""

    question: str
    image: Image.Image
    hits: tuple[ImageHit, ...]


class Scenario:
    """`k` rollouts in groups of `GROUP` with the same question and image.

    The same seed, the same scenario; a smaller one is the beginning of a larger one.
    """

    def __init__(self, k: int, seed: int) -> None:
        if k % GROUP:
            raise ValueError(f"the number of rollouts must be a multiple of {GROUP}, got {k}")
        self.k, self.seed = k, seed
        self.rows = [_row(random.Random(f"{seed}/row/{index}"), index) for index in range(k)]
        self._groups = [_group(random.Random(f"{seed}/group/{index}"), seed) for index in range(k // GROUP)]
        self._by_query = {row.query: row for row in self.rows if row.query is not None}

    def tasks(self) -> list[Task]:
        groups = [self._groups[row.group] for row in self.rows]
        return [
            Task(id=row.id, question=group.question, images=(group.image,))
            for row, group in zip(self.rows, groups, strict=True)
        ]

    def row(self, task_id: str) -> Row:
        return self.rows[int(task_id.removeprefix("row"))]

    def row_of_query(self, query: str) -> Row:
        return self._by_query[query]

    def image_hits(self, row: Row) -> Sequence[ImageHit]:
        """What the group's image is found on: the same for all rollouts of a group."""
        return self._groups[row.group].hits

    def text_hits(self, row: Row) -> Sequence[TextHit]:
        rng = random.Random(f"{self.seed}/{row.index}")
        return [TextHit(rng.choice(SYLLABLES), _words(rng, TEXT_RESULT_WORDS).strip()) for _ in range(TEXT_RESULTS)]


def _row(rng: random.Random, index: int) -> Row:
    actions, query, seconds = [], None, {}
    if rng.random() < P_IMAGE_SEARCH:
        actions.append(IMAGE_SEARCH_TAG)
        seconds[ActionKind.IMAGE_SEARCH] = _lognormal(rng, IMAGE_SEARCH_MEDIAN_S, IMAGE_SEARCH_SIGMA)
    if rng.random() < P_TEXT_SEARCH:
        query = f"{index}{_words(rng, 4)}"
        actions.append(f"<text_search>{query}</text_search>")
        seconds[ActionKind.TEXT_SEARCH] = _lognormal(rng, TEXT_SEARCH_MEDIAN_S, TEXT_SEARCH_SIGMA)
    actions.append(f"<answer>{rng.choice(YEARS)}</answer>")
    turns = tuple(f"<reason>{_words(rng, rng.randint(*TURN_WORDS))}</reason>{action}" for action in actions)
    return Row(index=index, group=index // GROUP, turns=turns, query=query, seconds=seconds)


def _lognormal(rng: random.Random, median: float, sigma: float) -> float:
    return median * rng.lognormvariate(0.0, sigma)


def _words(rng: random.Random, count: int) -> str:
    return "".join(f" {rng.choice(WORDS)}" for _ in range(count))


def _noise(rng: random.Random, side: int) -> Image.Image:
    return Image.frombytes("RGB", (side, side), rng.randbytes(side * side * 3))


def _group(rng: random.Random, seed: int) -> _Group:
    question = f"{seed}{_words(rng, rng.randint(*QUESTION_WORDS))}?"
    hits = tuple(
        ImageHit(_words(rng, IMAGE_RESULT_WORDS).strip(), thumbnail=_noise(rng, THUMBNAIL_SIZE))
        for _ in range(IMAGE_RESULTS)
    )
    return _Group(question, _noise(rng, QUERY_SIZE), hits)
