"""Rejection sampling: the trajectories of a run that ended in a right answer, as demonstrations.

MMSearch-R1's supervised baseline is made so. A trace keeps images no larger than `traces.images.MAX_SIDE`; the
question's own image in full size is taken from the data file that the question came from, where that is given. Of a
run without tools the conversation is shown as it was, and what the model said is learned alone.
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from mmsearch_trl.core.completion import FinishReason
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.message import ROLES, Message
from mmsearch_trl.core.observation import Failure, FailureKind, Hit, ImageHit, Observation, TextHit
from mmsearch_trl.core.task import Task
from mmsearch_trl.data.demonstrations import Demonstration
from mmsearch_trl.search.media.loading import load_image
from mmsearch_trl.traces.images import ImageStore
from mmsearch_trl.traces.records import TraceHit, TraceObservation, TraceRecord, TraceTurn


@dataclass(frozen=True, slots=True)
class TraceReader:
    """Makes trace records demonstrations; `images` is the store beside their file."""

    images: ImageStore

    @classmethod
    def beside(cls, file: Path) -> "TraceReader":
        return cls(ImageStore(file.parent / "images"))

    def demonstration(self, record: TraceRecord, original: Task | None = None) -> Demonstration:
        """The demonstration of one record.

        Args:
            original: The question as its data file has it; None takes the trace's own images.

        Raises:
            UserError: an image is missing, a tool, a failure or a role is unknown, or the record has no turn.
        """
        if not record.turns:
            raise UserError("the trajectory has no turn")
        task = original or Task(
            id=record.id,
            question=record.question,
            images=tuple(map(self._image, record.images)),
            messages=_messages(record),
            answers=record.answers,
            data_source=record.data_source,
            category=record.category,
        )
        answered = record.turns[:-1]
        return Demonstration(
            task=task,
            texts=tuple(turn.text for turn in record.turns),
            observations=tuple(self._observation(turn.observation) for turn in answered),
            reply_tokens=tuple(map(_observed_tokens, answered)),
            cut=record.turns[-1].finish_reason == FinishReason.LENGTH,
        )

    def _observation(self, trace: TraceObservation | None) -> Observation | None:
        if trace is None:
            return None
        try:
            tool = trace.tool
            kind = FailureKind(trace.failure.kind) if trace.failure is not None else None
        except ValueError as error:
            raise UserError(f"the trace of another version: {error}") from error
        if trace.failure is not None and kind is not None:
            return Observation(tool=tool, failure=Failure(kind, trace.failure.message))
        return Observation(tool=tool, hits=tuple(map(self._hit, trace.hits)))

    def _hit(self, hit: TraceHit) -> Hit:
        if hit.text is not None:
            return TextHit(hit.title, hit.text, url=hit.url)
        return ImageHit(hit.title, url=hit.url, thumbnail=self._image(hit.thumbnail) if hit.thumbnail else None)

    def _image(self, digest: str) -> Image.Image:
        path = self.images.find(digest)
        if path is None:
            raise UserError(f"the image {digest} is not in {self.images.folder}: copy a run's traces/ whole")
        return load_image(path)


def _messages(record: TraceRecord) -> tuple[Message, ...]:
    bare = (*({"image": digest} for digest in record.images), record.question)
    parts = iter(record.prompt)
    said: list[Message] = []
    for role, count in record.messages:
        if role not in ROLES:
            raise UserError(f"the trace of another version: it knows a role {role!r:.40}")
        content = tuple(None if isinstance(part, dict) else part for part in islice(parts, count))
        said.append(Message(role, content))  # pyright: ignore[reportArgumentType]
    if not said and record.outcome.searched is None and record.prompt != bare:
        raise UserError("the trace of another version: it does not tell whose words are whose; name question_files")
    return tuple(said)


def _observed_tokens(turn: TraceTurn) -> int:
    return sum(token.times for token in turn.tokens if not token.trained)
