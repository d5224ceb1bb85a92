"""A trace record: one trajectory as one line of JSON, with what the policy was paid for it.

A record holds text, numbers and image digests only. Images are stored once per content beside the traces
(`traces/images.py`), so eight rollouts of one question cost one image. What is read back equals what was written:
numbers are rounded when a record is made (`traces/build.py`), never when it is saved.
"""

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from mmsearch_trl.core.errors import UserError


class TraceToken(NamedTuple):
    """One token, `[text, trained, logprob, times]` in JSON.

    `trained` is the loss mask; `logprob` (nats) is None on observed tokens. A run of equal observed tokens, such as
    the pads of an image, is one entry with its length as `times`.
    """

    text: str
    trained: int
    logprob: float | None
    times: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceHit:
    """A search result; `thumbnail` is an image digest, `text` the passage of a text search."""

    title: str
    url: str | None = None
    text: str | None = None
    thumbnail: str | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class TraceFailure:
    kind: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceObservation:
    """A tool call's outcome."""

    tool: str
    hits: tuple[TraceHit, ...] = ()
    failure: TraceFailure | None = None
    backend: str = ""
    seconds: float = 0.0
    cached: bool = False
    coalesced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceTurn:
    """One turn of the model and the reply to it.

    Attributes:
        action: The tool that the turn calls; else its kind, `answer` or `none`.
        tokens: Those of both, in order.
    """

    text: str
    action: str
    action_text: str | None
    finish_reason: str
    generation_seconds: float
    tokens: tuple[TraceToken, ...]
    observation: TraceObservation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOutcome:
    """How it ended. `right` is None when nobody judged; `searched` counts searches that failed, too, and is None where
    there was nothing to search with."""

    stop: str | None
    right: bool | None
    searched: bool | None
    failure: TraceFailure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRecord:
    """One trajectory.

    Attributes:
        split: `train`, or the name of the evaluation.
        step: Optimizer steps taken before it was sampled.
        group: What reports group by: `extra["group"]` of the task where it has one, else its category.
        prompt: What stood before the first turn, images as `{"image": digest}`.
        images: Digests of the question's images.
        reward: What the policy was paid in all; `rewards` are its parts by name; None stands for a value that is not
            finite.
        advantage: None outside training.
        seconds: Wall time of the whole rollout, waiting included.
        messages: Of a conversation that the task began with: the role of each message, and how many parts of `prompt`
            it holds.
    """

    id: str
    split: str
    step: int
    data_source: str
    category: str | None
    group: str | None
    question: str
    answers: tuple[str, ...]
    outcome: TraceOutcome
    prompt: tuple[str | dict[str, str], ...]
    images: tuple[str, ...]
    turns: tuple[TraceTurn, ...]
    reward: float | None
    rewards: dict[str, float | None]
    advantage: float | None
    seconds: float
    messages: tuple[tuple[str, int], ...] = ()

    def to_json(self) -> str:
        """The record as one line of ASCII JSON, without the line end."""
        return json.dumps(self, default=_as_object, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> "TraceRecord":
        """Read what `to_json` wrote.

        Raises:
            UserError: it is not JSON, or not a record; the message says which.
        """
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"not JSON: {error}") from error
        try:
            row |= {key: tuple(row[key]) for key in ("answers", "prompt", "images")}
            row["outcome"] = TraceOutcome(**row["outcome"] | {"failure": _failure(row["outcome"]["failure"])})
            row["turns"] = tuple(map(_turn, row["turns"]))
            row["messages"] = tuple(_message(*message) for message in row.get("messages", ()))
            return cls(**row)
        except (KeyError, TypeError) as error:
            raise UserError(f"not a trace record ({type(error).__name__}: {error})") from error


def _as_object(part: Any) -> dict[str, Any]:
    """A part of a record by its names; `dataclasses.asdict` would copy every token, which takes six times as long."""
    return {name: getattr(part, name) for name in part.__dataclass_fields__}


def _failure(row: dict[str, str] | None) -> TraceFailure | None:
    return TraceFailure(**row) if row else None


def _message(role: str, parts: int) -> tuple[str, int]:
    return role, parts


def _turn(row: dict[str, Any]) -> TraceTurn:
    tokens = tuple(TraceToken(*token) for token in row["tokens"])
    return TraceTurn(**row | {"tokens": tokens, "observation": _observation(row["observation"])})


def _observation(row: dict[str, Any] | None) -> TraceObservation | None:
    if row is None:
        return None
    hits = tuple(TraceHit(**hit) for hit in row["hits"])
    # Records of earlier versions also hold the ready-made replies of upstream's tools, which no run had.
    known = {key: value for key, value in row.items() if key not in ("raw_text", "raw_images")}
    return TraceObservation(**known | {"hits": hits, "failure": _failure(row["failure"])})
