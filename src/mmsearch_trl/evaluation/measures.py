"""What a summary takes of one trajectory: of it nothing else is kept.

All counts come from typed observations and their failures, never from the wording of tool text. A search counts once
it was put to a tool, whether or not the tool could answer; one refused by a limit, an image search without an image
and a text search without words do not.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mmsearch_trl.core.action import SEARCHES, ActionKind
from mmsearch_trl.core.reward import RewardParts
from mmsearch_trl.core.trajectory import StopReason, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What a summary takes of one trajectory.

    Attributes:
        reward: 0 where nothing was scored; of an aborted rollout `accuracy` and `format` are 0, too.
        image_searches: Put to the tool; `image_failures` of them failed. The same for text.
        failed: The rollout could not be finished.
        response_length: Tokens the model wrote.
        tools: Calls of each other tool, and how many of them failed.
    """

    data_source: str
    category: str | None
    accuracy: float
    reward: float
    format: float
    image_searches: int
    image_failures: int
    text_searches: int
    text_failures: int
    failed: bool
    turns: int
    response_length: int
    tools: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, trajectory: Trajectory, parts: RewardParts) -> "Measures":
        calls: Counter[str] = Counter()
        failures: Counter[str] = Counter()
        of_tools = (each for each in trajectory.observations if each.tool not in SEARCHES)
        for observation in (*trajectory.searches, *of_tools):
            calls[observation.tool] += 1
            failures[observation.tool] += observation.failure is not None
        image, text = ActionKind.IMAGE_SEARCH, ActionKind.TEXT_SEARCH
        unscored = trajectory.aborted and math.isnan(parts.accuracy)
        return cls(
            data_source=trajectory.task.data_source,
            category=trajectory.task.category,
            accuracy=0.0 if unscored else parts.accuracy,
            reward=0.0 if math.isnan(parts.reward) else parts.reward,
            format=0.0 if unscored else parts.format,
            image_searches=calls[image],
            image_failures=failures[image],
            text_searches=calls[text],
            text_failures=failures[text],
            failed=trajectory.stop is StopReason.FAILED,
            turns=len(trajectory.turns),
            response_length=sum(len(turn.token_ids) for turn in trajectory.turns),
            tools={tool: [calls[tool], failures[tool]] for tool in calls if tool not in SEARCHES},
        )

    @property
    def searched(self) -> bool:
        return bool(self.image_searches or self.text_searches)
