"""What a rollout pays for its length, softly: DAPO's overlong reward shaping (arXiv 2503.14476, §3.4).

Nothing up to `max_tokens - buffer`, all of `factor` from `max_tokens` on, and between the two in proportion. Only
sampled tokens count: what tools reply is not the policy's doing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mmsearch_trl.core.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlongConfig:
    """The keys of `reward.overlong`.

    Raises:
        UserError: A value is out of range.
    """

    max_tokens: int = field(metadata={"help": "Sampled tokens of a rollout from which on it pays the whole penalty."})
    buffer: int = field(metadata={"help": "Tokens before that over which the penalty grows."})
    factor: float = field(default=1.0, metadata={"help": "The whole penalty."})

    def __post_init__(self) -> None:
        if not 0 < self.buffer <= self.max_tokens:
            raise UserError(
                f"reward.overlong.buffer must be from 1 to max_tokens ({self.max_tokens}), got {self.buffer}"
            )
        if not 0 < self.factor < float("inf"):
            raise UserError(f"reward.overlong.factor must be above 0, got {self.factor}")

    @property
    def free_tokens(self) -> int:
        """Up to which nothing is paid."""
        return self.max_tokens - self.buffer

    def penalty(self, tokens: int) -> float:
        """0 or less."""
        return -self.factor * min(max(tokens - self.free_tokens, 0) / self.buffer, 1.0)


class OverlongPenalty:
    """The penalty as a reward function in TRL's signature."""

    __name__ = "overlong"

    def __init__(self, config: OverlongConfig) -> None:
        self._config = config

    def __call__(self, sampled_tokens: Sequence[int], **columns: Any) -> list[float]:
        """
        Args:
            sampled_tokens: Of each rollout.
        """
        return [self._config.penalty(tokens) for tokens in sampled_tokens]
