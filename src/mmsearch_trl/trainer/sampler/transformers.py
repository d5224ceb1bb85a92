"""The trained model itself generates, with sharded weights gathered as TRL's own generation does."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from mmsearch_trl.distributed.policy import Policy
from mmsearch_trl.engine.transformers import TransformersEngine
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.trainer.sampler.sampler import OpenEngine, SamplerOptions, SyncStatistics


class TransformersSampler:
    """A `TransformersEngine` over the policy; there is nothing to sync.

    Args:
        stop_ids: Ids that end a turn.
    """

    max_model_len: int | None = None
    max_images: int | None = None

    def __init__(self, options: SamplerOptions, chat: ChatEncoder, stop_ids: Collection[int]) -> None:
        self._options = options
        self._chat = chat
        self._stop_ids = stop_ids

    @contextmanager
    def open(self, policy: Policy) -> Iterator[OpenEngine]:
        chat = self._chat
        with policy.generating(self._options.gradient_checkpointing_kwargs) as model:
            engine = TransformersEngine(
                model,
                chat.images,
                stop_ids=self._stop_ids,
                forbidden_ids=chat.forbidden_ids,
                image_pad_id=chat.image_pad_id,
                pad_id=chat.tokenizer.pad_token_id,
                vocabulary_size=chat.vocabulary_size,
                decode=chat.decode,
                max_batch=self._options.max_rollout_batch,
                autocast=lambda: policy.accelerator.autocast(),
            )
            try:
                yield OpenEngine(engine, SyncStatistics())
            finally:
                engine.close()

    def close(self) -> None:
        pass
