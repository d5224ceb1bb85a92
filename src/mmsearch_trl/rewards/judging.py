"""What is asked of a process that judges answers (`math_worker.py`)."""

import json
from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A question to the worker, whose answer is yes or no.

    Attributes:
        task: `right`: whether the answer is a gold one. `gold`: whether every gold answer can be read at all. `lmm_r1`
            and `r1_v`: whether those projects take the whole response for right.
        answer: The final answer, or the response.
    """

    task: Literal["right", "gold", "lmm_r1", "r1_v"]
    answer: str
    golds: tuple[str, ...]

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()
