"""What a model card says of a trained model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.protocol.base import SearchProtocol, TurnProtocol
from mmsearch_trl.protocol.search_r1 import SearchR1Protocol
from mmsearch_trl.rollout.limits import LIMITS_OF_ONE_TURN
from mmsearch_trl.rollout.rollouter import Rollouter
from mmsearch_trl.search.runtime import SearchRuntime


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a card says of a trained model.

    Attributes:
        model: Unwrapped; a `PeftModel` where an adapter was trained.
        hub_id: Its name on the Hub, if it has one.
        rollouter: How it searches.
        rewards: The reward functions by name.
        step: Optimizer steps taken.
        history: The trainer's log.
    """

    model: Any
    hub_id: str | None
    rollouter: Rollouter
    resize_images: bool
    rewards: Mapping[str, Any]
    step: int
    history: Sequence[Mapping[str, Any]]

    @property
    def protocol(self) -> TurnProtocol:
        return self.rollouter.protocol

    @property
    def sees_images(self) -> bool:
        return self.protocol.chat.sees_images

    @property
    def base_model(self) -> str | None:
        """What training started from: a Hub name or a folder."""
        name = getattr(self.model.config, "_name_or_path", None)
        return str(name) if name else None

    @property
    def searches(self) -> bool:
        return isinstance(self.protocol, SearchProtocol)

    @property
    def result_counts(self) -> dict[str, int]:
        """How many results a search brings at most."""
        search = self.rollouter.tools
        if not isinstance(search, SearchRuntime):
            return {}
        tools = {"image_top_k": ActionKind.IMAGE_SEARCH, "text_top_k": ActionKind.TEXT_SEARCH}
        return {name: search.k[tool] for name, tool in tools.items() if self.means_something(name)}

    def means_something(self, setting: str) -> bool:
        """Search-R1's protocol searches no images, and one without tools has a turn and nothing else."""
        if not self.searches:
            return setting in LIMITS_OF_ONE_TURN and setting != "max_turns"
        return not (setting.startswith("image_") and isinstance(self.protocol, SearchR1Protocol))
