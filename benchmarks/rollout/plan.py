"""The tokens that every prompt of a scenario is answered with.

A prompt is known by the digest of its token ids, so a scheduler that sends other ids than planned gets filler instead
of its turn and the comparison of the tokens fails. The first prompt is the same for all rollouts of a group: there the
request's seed tells them apart.
"""

import array
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


def prompt_digest(token_ids: Sequence[int]) -> str:
    return hashlib.sha1(array.array("I", token_ids).tobytes()).hexdigest()


@dataclass(slots=True)
class Plan:
    """Answers by prompt digest; for first prompts by digest and seed."""

    turns: dict[str, list[int]] = field(default_factory=dict)

    def add(self, key: str, token_ids: Sequence[int]) -> None:
        if self.turns.setdefault(key, list(token_ids)) != list(token_ids):
            raise ValueError("two turns of the scenarios have the same prompt")

    def find(self, prompt_ids: Sequence[int], seed: int | None) -> list[int] | None:
        digest = prompt_digest(prompt_ids)
        return self.turns.get(digest) or self.turns.get(f"{digest}/{seed}")

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.turns), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Plan":
        return cls(json.loads(path.read_text(encoding="utf-8")))
