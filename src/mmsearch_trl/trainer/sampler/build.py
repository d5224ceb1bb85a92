"""The sampler that a run's arguments name."""

from collections.abc import Collection

from mmsearch_trl.distributed.policy import Policy
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.engine.vllm_requests import Vocabulary
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.rollout.background_loop import BackgroundLoop
from mmsearch_trl.trainer.sampler.sampler import Sampler, SamplerOptions
from mmsearch_trl.trainer.sampler.transformers import TransformersSampler


def build_sampler(
    options: SamplerOptions,
    policy: Policy,
    chat: ChatEncoder,
    end_ids: Collection[int],
    ranks: Ranks,
    loop: BackgroundLoop,
) -> Sampler:
    """Build what writes the rollouts.

    Args:
        policy: The model before its first rollout.
        end_ids: Ids that end a turn beside the chat template's own.
        loop: Runs what talks to servers.

    Raises:
        EngineError: vLLM is missing, or a server is, or was started in a way that cannot serve rollouts.
        UserError: options do not go together.
    """
    stop_ids = {*end_ids, chat.turn_end_id}
    if not options.use_vllm:
        return TransformersSampler(options, chat, stop_ids)
    width = policy.model.config.get_text_config().vocab_size
    vocabulary = Vocabulary.of(
        stop_ids, chat.forbidden_ids, chat.image_pad_id, named=chat.vocabulary_size, width=width
    )
    # vLLM takes seconds to import, and is needed by who asks for it only.
    if options.vllm_mode == "server":
        from mmsearch_trl.trainer.sampler.server import ServerSampler

        return ServerSampler(options, policy, vocabulary, ranks, loop)
    from mmsearch_trl.trainer.sampler.colocated import ColocatedSampler

    return ColocatedSampler(options, policy, vocabulary, ranks)
