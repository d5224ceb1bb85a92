"""What writes the trainer's rollouts: the trained model itself, vLLM servers, or vLLM in this process.

Each is opened once per rollout batch, brings the engine to the trainer's weights if they changed, and yields it.
Every rank must open it equally often: gathering weights is a call that all ranks make together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from trl.models import unwrap_model_for_generation

from mmsearch_trl.engine.base import Engine
from mmsearch_trl.engine.sharding import gathered
from mmsearch_trl.engine.transformers import TransformersEngine
from mmsearch_trl.engine.vllm_requests import Vocabulary


if TYPE_CHECKING:
    from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer


class TimedEngine(Engine, Protocol):
    @property
    def busy_seconds(self) -> float:
        """Time spent generating since it was made."""
        ...


class RolloutEngine(Protocol):
    """An engine with the trainer's current weights, for the time of one rollout batch."""

    max_model_len: int | None
    """Tokens of prompt and response that it can hold; None where the model decides."""

    def open(self) -> AbstractContextManager[TimedEngine]: ...

    def close(self) -> None: ...


def build_rollout_engine(trainer: MMSearchGRPOTrainer, *, use_vllm: bool) -> RolloutEngine:
    """The engine that the trainer's arguments name.

    Raises:
        EngineError: vLLM is missing, or a server is, or was started in a way that cannot serve rollouts.
        UserError: arguments do not go together.
    """
    if not use_vllm:
        return TransformersRollouts(trainer)
    # vLLM takes seconds to import, and is needed by who asks for it only.
    if trainer.args.vllm_mode == "server":
        from mmsearch_trl.trainer.server_rollouts import ServerRollouts

        return ServerRollouts(trainer)
    from mmsearch_trl.trainer.colocated_rollouts import ColocatedRollouts

    return ColocatedRollouts(trainer)


def vocabulary(trainer: MMSearchGRPOTrainer) -> Vocabulary:
    """The ids that end a turn, as TRL would end it, and those that no turn may sample."""
    chat = trainer.protocol.chat
    model = trainer.accelerator.unwrap_model(trainer.model)
    return Vocabulary.of(
        (*trainer.eos_token_ids, chat.turn_end_id),
        chat.forbidden_ids,
        chat.image_pad_id,
        named=chat.vocabulary_size,
        width=model.config.get_text_config().vocab_size,
    )


class TransformersRollouts:
    """The trained model generates, with sharded weights gathered as TRL's own generation does."""

    max_model_len: int | None = None

    def __init__(self, trainer: MMSearchGRPOTrainer) -> None:
        self._trainer = trainer

    @contextmanager
    def open(self) -> Iterator[TransformersEngine]:
        trainer = self._trainer
        chat, args = trainer.protocol.chat, trainer.args
        checkpointing: Any = args.gradient_checkpointing_kwargs
        with (
            unwrap_model_for_generation(
                trainer.model_wrapped,
                trainer.accelerator,
                gather_deepspeed3_params=args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=checkpointing,
            ) as model,
            torch.no_grad(),
            trainer._dist.summon_full_params(trainer.model_wrapped, recurse=False),
            gathered(model),
        ):
            engine = TransformersEngine(
                model,
                chat.images,
                stop_ids={*trainer.eos_token_ids, chat.turn_end_id},
                forbidden_ids=chat.forbidden_ids,
                image_pad_id=chat.image_pad_id,
                pad_id=chat.tokenizer.pad_token_id,
                vocabulary_size=chat.vocabulary_size,
                decode=chat.decode,
                max_batch=args.max_rollout_batch,
            )
            try:
                yield engine
            finally:
                engine.close()

    def close(self) -> None:
        pass
