"""The world: entities that have an emblem, a name, a founding year and a city, and questions about them.

Three groups of entities are fixed by the seed: the model is taught the *known* ones before reinforcement learning,
trains on the *unknown* ones and is judged on the *held-out* ones, which it meets nowhere else. The emblems of the
*pool* have no entity: a warm-start trace gives one of them a name, year and city for that trace alone, so that nothing
but reading the search results can help. Invariants: emblems of two entities differ in two attributes or more; no name
is used twice, not even with its syllables exchanged (a bag-of-words search could not tell the two apart).
"""

import random
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from types import MappingProxyType

from mmsearch_trl.core.task import Task
from mmsearch_trl.world.emblems import Emblem, draw, make_emblems, random_jitter


SYLLABLES: tuple[str, ...] = (
    *("Bel", "Tor", "Mav", "Rin", "Dak", "Sol", "Fen", "Gur", "Hal", "Jom", "Kip", "Lud", "Nox", "Pex"),
    *("Qua", "Ral", "Sib", "Tam", "Ulm", "Vor", "Wex", "Yan", "Zed", "Bru", "Cly", "Dro", "Elk", "Fyr"),
    *("Gan", "Hob", "Ivo", "Jud", "Kor", "Lim", "Mog", "Nam", "Orb", "Pim", "Rud", "Syl"),
)
CITIES: tuple[str, ...] = (
    *("Calton", "Arbury", "Benmore", "Corvale", "Dunley", "Eastor", "Farholm", "Glenby", "Harwick", "Inverly"),
    *("Jarrow", "Kelso", "Lanford", "Marden", "Norwell", "Oakham", "Penrith", "Quorley", "Redmere", "Stanby"),
    *("Tarvin", "Upwell", "Wexham", "Yarley"),
)
YEARS: tuple[str, ...] = tuple(str(year) for year in range(1000, 2000, 40))
"""One word each, as many as there are cities: years of two numbers took a model of this size far longer to copy."""


class Group(StrEnum):
    KNOWN = "known"
    UNKNOWN = "unknown"
    HELD_OUT = "held_out"


GROUP_SIZES = MappingProxyType({Group.KNOWN: 24, Group.UNKNOWN: 150, Group.HELD_OUT: 60})
POOL_SIZE = 300


class Fact(StrEnum):
    """What a question asks for."""

    NAME = "name"
    YEAR = "year"
    CITY = "city"

    @property
    def question(self) -> str:
        return _QUESTIONS[self]


_QUESTIONS = MappingProxyType(
    {Fact.NAME: "what is its name?", Fact.YEAR: "what year was it founded?", Fact.CITY: "what city is it in?"}
)


@dataclass(frozen=True, slots=True)
class Entity:
    """One inhabitant of the world; `name` is two syllables, year and city one word each."""

    emblem: Emblem
    name: str
    year: str
    city: str

    def value(self, fact: Fact) -> str:
        return {Fact.NAME: self.name, Fact.YEAR: self.year, Fact.CITY: self.city}[fact]

    @property
    def passage(self) -> str:
        """What the text index holds about the entity, without its title."""
        return f"founded {self.year} city {self.city}."

    @property
    def url(self) -> str:
        return f"https://world.example/{self.name.replace(' ', '_')}"


def random_facts(rng: random.Random) -> tuple[str, str]:
    """A year and a city."""
    return rng.choice(YEARS), rng.choice(CITIES)


class World:
    """Everything that one seed fixes: the entities of each group, the pool of emblems and the names left for it."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        rng = random.Random(f"world {seed}")
        pairs = list(combinations(SYLLABLES, 2))
        rng.shuffle(pairs)
        names = [" ".join(rng.sample(pair, 2)) for pair in pairs]
        emblems = make_emblems(sum(GROUP_SIZES.values()) + POOL_SIZE, rng)
        self.groups: dict[Group, tuple[Entity, ...]] = {}
        for group, size in GROUP_SIZES.items():
            self.groups[group] = tuple(Entity(emblems.pop(), names.pop(), *random_facts(rng)) for _ in range(size))
        self.pool: tuple[Emblem, ...] = tuple(emblems)
        self.spare_names: tuple[str, ...] = tuple(names)

    @property
    def entities(self) -> list[Entity]:
        """All entities of all groups, which are what the indexes hold."""
        return [entity for group in self.groups.values() for entity in group]

    def tasks(self, group: Group) -> list[Task]:
        """One task per entity and fact, in a fixed order: 72 known, 450 unknown, 180 held out."""
        return [
            self._task(group, number, entity, fact, copy=0)
            for number, entity in enumerate(self.groups[group])
            for fact in Fact
        ]

    def training_tasks(self) -> list[Task]:
        """Every unknown task once and as many known ones, each repetition with its own jitter, shuffled together."""
        tasks = self.tasks(Group.UNKNOWN)
        known = self.groups[Group.KNOWN]
        kinds = [(number, fact) for number in range(len(known)) for fact in Fact]
        for index in range(len(tasks)):
            copy, kind = divmod(index, len(kinds))
            number, fact = kinds[kind]
            tasks.append(self._task(Group.KNOWN, number, known[number], fact, copy=copy + 1))
        random.Random(f"world {self.seed} training order").shuffle(tasks)
        return tasks

    def _task(self, group: Group, number: int, entity: Entity, fact: Fact, copy: int) -> Task:
        task_id = f"world{self.seed}-{group}-{number:03d}-{fact}" + (f"-{copy}" if copy else "")
        jitter = random_jitter(random.Random(task_id))
        return Task(
            id=task_id,
            question=fact.question,
            images=(draw(entity.emblem, jitter=jitter),),
            answers=(entity.value(fact),),
            data_source="world",
            category="search_free" if group is Group.KNOWN else "search_required",
            extra={"group": str(group), "fact": str(fact)},
        )
