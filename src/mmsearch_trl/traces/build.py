"""From a trajectory, its reward and a tokenizer to a trace record."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from PIL import Image

from mmsearch_trl.core.images import ImageInput, Part, image_digest
from mmsearch_trl.core.observation import Failure, Hit, ImageHit, Observation
from mmsearch_trl.core.redaction import redacted
from mmsearch_trl.core.reward import ScoredTrajectory
from mmsearch_trl.core.trajectory import Trajectory, Turn
from mmsearch_trl.traces.records import (
    TraceFailure,
    TraceHit,
    TraceObservation,
    TraceOutcome,
    TraceRecord,
    TraceToken,
    TraceTurn,
)


Speller = Callable[[Sequence[int]], list[str]]


def trace_record(scored: ScoredTrajectory, spell: Speller, *, step: int, split: str) -> TraceRecord:
    """Build the record of one trajectory; `spell` turns ids into text pieces (`TokenSpeller`)."""
    trajectory = scored.trajectory
    task = trajectory.task
    return TraceRecord(
        id=task.id,
        split=split,
        step=step,
        data_source=task.data_source,
        category=task.category,
        group=scored.group,
        question=task.question,
        answers=tuple(task.answers),
        outcome=_outcome(scored),
        prompt=tuple(_part(part) for part in trajectory.prompt),
        images=tuple(part.key for part in trajectory.prompt_images),
        turns=tuple(_turn(turn, spell) for turn in trajectory.turns),
        reward=_rounded(scored.reward),
        rewards={name: _rounded(value) for name, value in scored.rewards.items()},
        advantage=_rounded(scored.advantage),
        seconds=round(trajectory.seconds, 4),
        messages=tuple((message.role, len(message.content)) for message in task.messages),
    )


def images_of(trajectory: Trajectory) -> Iterator[tuple[str, Image.Image]]:
    """Yield every image that the trajectory's record names, with its digest; an image may come twice."""
    yield from ((part.key, part.image) for part in trajectory.prompt_images)
    for observation in trajectory.observations:
        thumbnails = (hit.thumbnail for hit in observation.hits if isinstance(hit, ImageHit) and hit.thumbnail)
        yield from ((image_digest(image), image) for image in thumbnails)


def _outcome(scored: ScoredTrajectory) -> TraceOutcome:
    trajectory = scored.trajectory
    return TraceOutcome(
        stop=trajectory.stop.value if trajectory.stop else None,
        right=scored.right,
        searched=trajectory.searched,
        failure=_failure(trajectory.failure),
    )


def _turn(turn: Turn, spell: Speller) -> TraceTurn:
    return TraceTurn(
        text=turn.text,
        action=turn.action.tool or turn.action.kind.value,
        action_text=turn.action.text,
        finish_reason=turn.finish_reason.value,
        generation_seconds=round(turn.generation_seconds, 4),
        tokens=(*_sampled(turn, spell), *_observed(turn.reply_ids, spell)),
        observation=_observation(turn.observation) if turn.observation else None,
    )


def _sampled(turn: Turn, spell: Speller) -> Iterator[TraceToken]:
    for text, logprob in zip(spell(turn.token_ids), turn.logprobs, strict=True):
        yield TraceToken(text, 1, _rounded(logprob))


def _observed(token_ids: Sequence[int], spell: Speller) -> Iterator[TraceToken]:
    """One entry per run of equal ids: the pads of an image are hundreds of the same token."""
    pieces = zip(token_ids, spell(token_ids), strict=True)
    for (_, text), run in groupby(pieces):
        yield TraceToken(text, 0, None, sum(1 for _ in run))


def _observation(observation: Observation) -> TraceObservation:
    return TraceObservation(
        tool=observation.tool,
        hits=tuple(_hit(hit) for hit in observation.hits),
        failure=_failure(observation.failure),
        backend=observation.backend,
        seconds=round(observation.seconds, 4),
        cached=observation.cached,
        coalesced=observation.coalesced,
    )


def _hit(hit: Hit) -> TraceHit:
    score = _rounded(hit.score)
    if isinstance(hit, ImageHit):
        thumbnail = image_digest(hit.thumbnail) if hit.thumbnail else None
        return TraceHit(title=hit.title, url=hit.url, thumbnail=thumbnail, score=score)
    return TraceHit(title=hit.title, url=hit.url, text=hit.text, score=score)


def _failure(failure: Failure | None) -> TraceFailure | None:
    return TraceFailure(failure.kind.value, redacted(failure.message)) if failure else None


def _part(part: Part) -> str | dict[str, str]:
    return {"image": part.key} if isinstance(part, ImageInput) else part


def _rounded(value: float | None) -> float | None:
    """Four decimals are what a reader can use; JSON holds no NaN and no infinity."""
    return None if value is None or not math.isfinite(value) else round(float(value), 4)
