"""The traces of what a rank trains on."""

import logging
from collections.abc import Sequence
from pathlib import Path

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.reward import ScoredTrajectory
from mmsearch_trl.traces.files import TraceWriter
from mmsearch_trl.traces.tokens import Decoder


logger = logging.getLogger(__name__)


class TrainingTraces:
    """Writes batches to a file that is opened with the first of them.

    A full disk costs the traces of a batch, and not what was learnt: the next batch tries again.
    """

    def __init__(self, path: Path, tokenizer: Decoder) -> None:
        self._path = path
        self._tokenizer = tokenizer
        self._writer: TraceWriter | None = None

    def write(self, batch: Sequence[ScoredTrajectory], step: int) -> None:
        try:
            if self._writer is None:
                writer = TraceWriter(self._path, self._tokenizer)
                writer.forget_from(step)  # a resumed run samples these steps again
                self._writer = writer
            self._writer.write(batch, step=step)
        except UserError as error:
            count = len(batch)
            logger.error("Step %d: %d trajectories are not recorded, and training goes on: %s", step, count, error)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
