"""The order in which training sees its prompts."""

from collections.abc import Callable, Generator
from typing import Any

from trl.trainer.utils import RepeatSampler


class EpochSampler(RepeatSampler):
    """TRL's sampler, but an epoch's order depends on the seed and the epoch's number alone.

    TRL's draws one epoch after another from one generator, so a run that is resumed in its second epoch sees the order
    of the first again.

    Args:
        plain: The sampler that TRL made.
        epoch: Gives the number of the epoch that begins.
    """

    def __init__(self, plain: RepeatSampler, epoch: Callable[[], int]) -> None:
        super().__init__(
            plain.data_source,
            mini_repeat_count=plain.mini_repeat_count,
            batch_size=plain.batch_size,
            repeat_count=plain.repeat_count,
            shuffle=plain.shuffle,
            seed=plain.seed,
        )
        self._epoch = epoch

    def __iter__(self) -> Generator[int, Any, None]:
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + self._epoch())
        return super().__iter__()
