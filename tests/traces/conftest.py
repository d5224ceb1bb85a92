"""Synthetic trajectories with real images: what every test of the traces reads."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import FinishReason
from mmsearch_trl.core.images import ImageInput, image_digest
from mmsearch_trl.core.observation import Failure, FailureKind, ImageHit, Observation, TextHit
from mmsearch_trl.core.reward import RewardParts, ScoredTrajectory
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import StopReason, Trajectory, Turn
from mmsearch_trl.traces.files import TraceWriter, trace_path


PAD = 0x110001
END = 0x110002
_SPECIAL = {PAD: "<|image_pad|>", END: "<|im_end|>"}


class CharacterTokenizer:
    """One id per character, and two special tokens."""

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        kept = (token for token in token_ids if not (skip_special_tokens and token in _SPECIAL))
        return "".join(_SPECIAL.get(token) or chr(token) for token in kept)


TOKENIZER = CharacterTokenizer()


def picture(colour: str, side: int = 56) -> Image.Image:
    image = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(image).ellipse((side // 8, side // 8, side * 7 // 8, side * 7 // 8), fill=colour)
    return image


def image_input(image: Image.Image, num_tokens: int = 4) -> ImageInput:
    return ImageInput(image, image_digest(image), num_tokens, image.size)


def turn(text: str, kind: ActionKind, action_text: str | None = None, observation: Observation | None = None) -> Turn:
    ids = (*TOKENIZER.encode(text), END)
    reply = "" if observation is None else "Searched results: " + _reply_text(observation) + "\n"
    images = [hit.thumbnail for hit in observation.hits if isinstance(hit, ImageHit)] if observation else []
    pads = [PAD] * 4 * sum(image is not None for image in images)
    return Turn(
        token_ids=ids,
        logprobs=tuple(-0.01 * (1 + position % 7) ** 2 for position in range(len(ids))),
        finish_reason=FinishReason.STOP,
        text=text,
        action=Action(kind, action_text),
        observation=observation,
        reply=(reply,) if reply else (),
        reply_ids=(*TOKENIZER.encode(reply), *pads),
        generation_seconds=0.4 + len(text) / 100,
    )


def _reply_text(observation: Observation) -> str:
    if observation.failure:
        return observation.failure.message
    return " ".join(hit.title + (f" {hit.text}" if isinstance(hit, TextHit) else "") for hit in observation.hits)


def image_search(title: str = "Bel Tor", *, failure: Failure | None = None) -> Observation:
    hits = (
        ()
        if failure
        else (
            ImageHit(title, url="https://example.org/bel-tor", thumbnail=picture("crimson", 28), score=0.93),
            ImageHit("Another emblem", thumbnail=None),
        )
    )
    return Observation(
        tool=ActionKind.IMAGE_SEARCH, hits=hits, failure=failure, backend="pixels", seconds=1.25, cached=not failure
    )


def text_search(text: str = "Bel Tor founded 1742 city Calton.") -> Observation:
    hits = (TextHit("Bel Tor", text, url="https://example.org/wiki"), TextHit("Mor Dan", "Mor Dan founded 1201."))
    return Observation(tool=ActionKind.TEXT_SEARCH, hits=hits, backend="bm25", seconds=0.35, coalesced=True)


def trajectory(turns: Sequence[Turn], *, task_id: str = "world-7", group: str = "known", **task: Any) -> Trajectory:
    thumbnail = picture("seagreen")
    columns: dict[str, Any] = {
        "question": "In which city is this emblem used?",
        "answers": ("Calton", "Calton City"),
    } | task
    return Trajectory(
        task=Task(
            id=task_id,
            images=(thumbnail,),
            data_source="world",
            category="search_free",
            image_url="https://example.org/q.png",
            extra={"group": group},
            **columns,
        ),
        prompt=("Here is the image and the question:\n ", image_input(thumbnail), str(columns["question"])),
        prompt_ids=(*TOKENIZER.encode("Here: "), *[PAD] * 4, *TOKENIZER.encode(str(columns["question"]))),
        turns=list(turns),
        stop=StopReason.ANSWERED,
        seconds=sum(t.generation_seconds + (t.observation.seconds if t.observation else 0) for t in turns) + 0.2,
    )


def searched(title: str = "Bel Tor", passage: str = "Bel Tor founded 1742 city Calton.", **task: Any) -> Trajectory:
    """Image search, text search, answer."""
    return trajectory(
        [
            turn(
                "<reason> it is new</reason>\n<search><img></search>",
                ActionKind.IMAGE_SEARCH,
                observation=image_search(title),
            ),
            turn(
                "<reason> it is Bel Tor</reason>\n<text_search> Bel Tor</text_search>",
                ActionKind.TEXT_SEARCH,
                "Bel Tor",
                text_search(passage),
            ),
            turn("<reason> found</reason>\n<answer> Calton</answer>", ActionKind.ANSWER, "Calton"),
        ],
        **task,
    )


def direct(answer: str = "Calton", **task: Any) -> Trajectory:
    """An answer at once."""
    return trajectory(
        [turn(f"<reason> it is Bel Tor</reason>\n<answer> {answer}</answer>", ActionKind.ANSWER, answer)],
        **task,
    )


def scored(made: Trajectory, accuracy: float = 1.0, advantage: float | None = 0.5) -> ScoredTrajectory:
    paid = accuracy * (0.9 if any(made.observations) else 1.0) * 0.9 + 0.1
    parts = RewardParts(paid, accuracy, 1.0, sum(1 for _ in made.observations), None)
    return ScoredTrajectory(trajectory=made, parts=parts, advantage=advantage)


def broken() -> Trajectory:
    """An image search that fails, and an answer without it."""
    failure = Failure(FailureKind.TIMEOUT, "no answer within 5 s")
    search = turn("<search><img></search>", ActionKind.IMAGE_SEARCH, observation=image_search(failure=failure))
    return trajectory([search, turn("<answer> unknown</answer>", ActionKind.ANSWER, "unknown")], task_id="world-9")


@pytest.fixture
def tokenizer() -> CharacterTokenizer:
    return TOKENIZER


@pytest.fixture
def searching() -> ScoredTrajectory:
    return scored(searched(group="held_out"))


@pytest.fixture
def answering() -> ScoredTrajectory:
    return scored(direct())


@pytest.fixture
def failing() -> ScoredTrajectory:
    return scored(broken(), accuracy=0.0, advantage=-1.2)


@pytest.fixture
def hostile() -> Callable[[str], ScoredTrajectory]:
    """A trajectory whose page title and passage hold the given text."""
    return lambda text: scored(searched(text, text))


@pytest.fixture
def run_dir(
    tmp_path: Path, searching: ScoredTrajectory, answering: ScoredTrajectory, failing: ScoredTrajectory
) -> Path:
    """A run of two training steps and an evaluation before and after."""
    with TraceWriter(trace_path(tmp_path, "train"), TOKENIZER) as writer:
        writer.write([searching, answering, failing], step=0)
        writer.write([searching, answering], step=1)
    with TraceWriter(trace_path(tmp_path, "eval"), TOKENIZER) as writer:
        writer.write([searching, failing], step=0, split="eval")
        writer.write([searching, answering], step=2, split="eval")
    return tmp_path
