"""Warm-start traces: conversations that teach perception and grammar and leave the decision to search open.

The first turn says what it sees, ` it is Bel Tor` for a known emblem and ` it is new` for any other, and then answers
or searches on the toss of a coin, whatever it said; what to do about a new emblem is for reinforcement learning to
find out. A new emblem comes from the world's pool and gets a name, year and city for this one trace, so nothing can be
learned about it but to read the results. The number of results varies, and in a share of the traces the true hit is
not the first, so that reading by position alone is not enough.

Invariant: no emblem and no name of the unknown and held-out groups occurs in a trace, not even in a hit that is beside
the point. A trace is a `Trajectory`, made by the protocol's own encoder: its loss mask is the trajectory's.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.completion import FinishReason
from mmsearch_trl.core.observation import ImageHit, Observation, TextHit
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import StopReason, Trajectory, Turn
from mmsearch_trl.protocol.chat import Encoded
from mmsearch_trl.protocol.mmsearch import IMAGE_SEARCH_TAG, MMSearchProtocol
from mmsearch_trl.world.emblems import THUMBNAIL_SIZE, Emblem, draw, random_jitter
from mmsearch_trl.world.world import Entity, Fact, Group, World, random_facts


MAX_IMAGE_HITS = 5
MAX_TEXT_HITS = 3
UNKNOWN = "unknown"
"""What a direct answer about a new emblem says: never right, and never a guess."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceMix:
    """Shares of the traces, each from 0 to 1.

    Attributes:
        known: Traces about a known entity; the others are about a pool emblem.
        search: Traces that search, among the known and among the others alike.
        year: Traces that ask for the year; the others ask for name or city, equally often.
        shuffled_image: Searching traces in which the true hit has a random rank among the image hits.
        shuffled_text: The same for text hits.
    """

    known: float = 0.4
    search: float = 0.5
    year: float = 1 / 3
    shuffled_image: float = 0.2
    shuffled_text: float = 0.2


class TraceWriter:
    """Writes traces of one world in the words of one protocol; each call draws from the generator that it is given."""

    def __init__(self, world: World, protocol: MMSearchProtocol, mix: TraceMix | None = None) -> None:
        self._world = world
        self._protocol = protocol
        self._mix = mix or TraceMix()
        self._known = world.groups[Group.KNOWN]
        self._known_by_emblem = {entity.emblem: entity for entity in self._known}
        self._lookalikes = _lookalikes([*self._known_by_emblem, *world.pool])
        self._prompts: dict[str, Encoded] = {}
        self._turns: dict[str, tuple[int, ...]] = {}
        self._names_by_syllable: dict[str, list[str]] = defaultdict(list)
        for name in (*(entity.name for entity in self._known), *world.spare_names):
            for syllable in name.split():
                self._names_by_syllable[syllable].append(name)

    def batch(self, count: int, rng: random.Random) -> list[Trajectory]:
        return [self.trace(rng) for _ in range(count)]

    def trace(self, rng: random.Random) -> Trajectory:
        """Write one trace of one turn (direct), two (name) or three (year, city). Log-probs are 0."""
        known = rng.random() < self._mix.known
        entity = rng.choice(self._known) if known else self._newcomer(rng.choice(self._world.pool), rng)
        fact = Fact.YEAR if rng.random() < self._mix.year else rng.choice((Fact.NAME, Fact.CITY))
        seen = f"it is {entity.name}" if known else "it is new"
        task = self._task(entity, fact, known, rng)
        if rng.random() >= self._mix.search:
            return self._write(task, [_reasoned(seen, _answer(entity.value(fact) if known else UNKNOWN))], [])
        turns, observations = self._search(entity, fact, seen, rng)
        return self._write(task, turns, observations)

    def _search(
        self, entity: Entity, fact: Fact, seen: str, rng: random.Random
    ) -> tuple[list[str], list[Observation]]:
        """The turns that look the entity up, and what the searches bring."""
        turns = [_reasoned(seen, IMAGE_SEARCH_TAG)]
        observations = [self._image_results(entity, rng)]
        found = f"it is {entity.name}"
        if fact is Fact.NAME:
            return [*turns, _reasoned(found, _answer(entity.name))], observations
        turns.append(_reasoned(found, f"<text_search> {entity.name}</text_search>"))
        observations.append(self._text_results(entity, rng))
        read = f"founded {entity.year}" if fact is Fact.YEAR else f"city {entity.city}"
        return [*turns, _reasoned(read, _answer(entity.value(fact)))], observations

    def _write(self, task: Task, texts: Sequence[str], observations: Sequence[Observation]) -> Trajectory:
        """Encode a conversation: turn k is answered by observation k, the last turn by none."""
        prompt = self._prompt(task)
        trajectory = Trajectory(task=task, prompt=prompt.parts, prompt_ids=prompt.token_ids, stop=StopReason.ANSWERED)
        for text, observation in zip(texts, [*observations, None], strict=True):
            ids = self._turn_ids(text)
            reply = self._protocol.reply(observation, task, ids) if observation is not None else None
            trajectory.turns.append(
                Turn(
                    token_ids=ids,
                    logprobs=(0.0,) * len(ids),
                    finish_reason=FinishReason.STOP,
                    text=text,
                    action=self._protocol.read(text),
                    observation=observation,
                    reply=reply.parts if reply else (),
                    reply_ids=reply.token_ids if reply else (),
                )
            )
        return trajectory

    def _prompt(self, task: Task) -> Encoded:
        """The first message. Query images all have one size, so its ids depend on the question alone."""
        if task.question not in self._prompts:
            self._prompts[task.question] = self._protocol.prompt(task)
        parts, ids = self._prompts[task.question]
        image = self._protocol.chat.images.encode(task.images[0])
        return Encoded(tuple(part if isinstance(part, str) else image for part in parts), ids)

    def _turn_ids(self, text: str) -> tuple[int, ...]:
        """A turn as the model would write it, end included; many turns are the same, so they are kept."""
        if text not in self._turns:
            chat = self._protocol.chat
            self._turns[text] = (*chat.tokenizer(text, add_special_tokens=False)["input_ids"], chat.turn_end_id)
        return self._turns[text]

    def _task(self, entity: Entity, fact: Fact, known: bool, rng: random.Random) -> Task:
        return Task(
            id=f"world{self._world.seed}-trace-{rng.getrandbits(64):016x}",
            question=fact.question,
            images=(draw(entity.emblem, jitter=random_jitter(rng)),),
            answers=(entity.value(fact),),
            data_source="world",
            category="search_free" if known else "search_required",
            extra={"group": str(Group.KNOWN) if known else "pool", "fact": str(fact)},
        )

    def _newcomer(self, emblem: Emblem, rng: random.Random, others: Sequence[Entity] = ()) -> Entity:
        """An entity for one trace, with a spare name that none of the others has, in either order of its syllables."""
        name = rng.choice(self._world.spare_names)
        while _named(name, others):
            name = rng.choice(self._world.spare_names)
        return Entity(emblem, _either_order(name, rng), *random_facts(rng))

    def _image_results(self, entity: Entity, rng: random.Random) -> Observation:
        hits = [entity]
        for emblem in rng.sample(self._lookalikes[entity.emblem], rng.randint(1, MAX_IMAGE_HITS) - 1):
            hits.append(self._known_by_emblem.get(emblem) or self._newcomer(emblem, rng, hits))
        if rng.random() < self._mix.shuffled_image:
            rng.shuffle(hits)
        thumbnails = [ImageHit(hit.name, url=hit.url, thumbnail=draw(hit.emblem, THUMBNAIL_SIZE)) for hit in hits]
        return Observation(tool=ActionKind.IMAGE_SEARCH, hits=tuple(thumbnails))

    def _text_results(self, entity: Entity, rng: random.Random) -> Observation:
        """The entity's passage and passages about names that share a syllable with it, as a lexical index finds."""
        hits = [entity]
        count = rng.randint(1, MAX_TEXT_HITS)
        while len(hits) < count:
            name = rng.choice(self._names_by_syllable[rng.choice(entity.name.split())])
            if not _named(name, hits):
                hits.append(self._bearer(name, rng))
        if rng.random() < self._mix.shuffled_text:
            rng.shuffle(hits)
        passages = [TextHit(hit.name, hit.passage, url=hit.url) for hit in hits]
        return Observation(tool=ActionKind.TEXT_SEARCH, hits=tuple(passages))

    def _bearer(self, name: str, rng: random.Random) -> Entity:
        """The known entity of that name, or a newcomer. A passage shows no emblem, so any one will do."""
        known = next((entity for entity in self._known if entity.name == name), None)
        return known or Entity(self._world.pool[0], _either_order(name, rng), *random_facts(rng))


def _lookalikes(emblems: Sequence[Emblem]) -> dict[Emblem, list[Emblem]]:
    """For each emblem those that share two attributes with it: the nearest there are, as an image search finds."""
    return {one: [other for other in emblems if one.distance(other) == 2] for one in emblems}


def _named(name: str, entities: Sequence[Entity]) -> bool:
    """Whether one of the entities has this name, the order of its syllables aside."""
    return any(set(entity.name.split()) == set(name.split()) for entity in entities)


def _either_order(name: str, rng: random.Random) -> str:
    return " ".join(rng.sample(name.split(), 2))


def _reasoned(thought: str, action: str) -> str:
    return f"<reason> {thought}</reason>{action}"


def _answer(value: str) -> str:
    return f"<answer> {value}</answer>"
