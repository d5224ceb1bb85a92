"""Every rank runs the vision tower where one of them does.

Sharded weights (FSDP2, ZeRO-3) are gathered layer by layer, and gradients are reduced layer by layer (ZeRO-2): calls
that all ranks must make together. A rank whose rows have no picture would run no vision tower, and take part in the
wrong calls, or wait for ever. Its micro-batch is given one blank picture, behind the end of a row: nothing attends to
it and nothing is predicted there, so that no other value changes, and the gradient that it leaves is exactly 0.
"""

from typing import Any

from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.trainer.blank_picture import BlankPicture


class VisionOnAllRanks:
    """Has every rank run the vision tower in a micro-batch where one does.

    Args:
        processor: Of the model; the tokenizer of a language model, which has no vision tower, is taken too.
    """

    def __init__(self, processor: Any, ranks: Ranks) -> None:
        self._ranks = ranks
        several = ranks.count > 1 and getattr(processor, "image_processor", None) is not None
        self._blank = BlankPicture.of(processor) if several else None

    def blank(self, has_pictures: bool) -> BlankPicture | None:
        """The picture for forward passes that have none, if any rank's micro-batch has one; a collective call.

        Where no rank has any, none runs the vision tower: so does one process, whose optimizer leaves it alone.
        """
        if self._blank is None or not self._ranks.any(has_pictures):
            return None
        return self._blank
