"""The world's processor: a real Qwen2.5-VL processor around a byte-level BPE trained on the world's few words.

Invariants: any text can be encoded (the alphabet is all bytes); every word of the world, preceded by a space, is one
token, years included, so a name is copied as two tokens, a year and a city as one; each protocol tag is one token that
is not special, so decoded turns keep it. Ids do not depend on the world's seed.
"""

from collections.abc import Iterator
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from mmsearch_trl.protocol.mmsearch import IMAGE_SEARCH_TAG
from mmsearch_trl.world.emblems import QUERY_SIZE, THUMBNAIL_SIZE
from mmsearch_trl.world.world import CITIES, SYLLABLES, YEARS, Fact


TAGS: tuple[str, ...] = (
    *("<reason>", "</reason>", "<answer>", "</answer>"),
    *(IMAGE_SEARCH_TAG, "<text_search>", "</text_search>", "<information>", "</information>"),
)
SPECIAL_TOKENS: tuple[str, ...] = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)

_SENTENCES: tuple[str, ...] = (
    *(" " + fact.question for fact in Fact),
    " it is new. unknown",
    " founded city",
    " nothing search failed too long answer",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for block in message['content'] %}"
    "{% if block['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif block['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in block %}{{ block['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML as the Qwen models have it, without the system message that they put in when there is none."""


def build_processor() -> Qwen2_5_VLProcessor:
    """Build the processor: a 56 px image is 16 patches or 4 tokens, a 28 px one 4 patches or 1 token.

    Larger images are scaled down to 56 x 56 pixels' area. `save_pretrained` and `AutoProcessor` work as usual.
    """
    patches: dict[str, Any] = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    patches["size"] = {"shortest_edge": THUMBNAIL_SIZE**2, "longest_edge": QUERY_SIZE**2}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(**patches),
        tokenizer=build_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**patches),
        chat_template=CHAT_TEMPLATE,
    )


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train the tokenizer, a fraction of a second; the same ids every time."""
    bpe = Tokenizer(models.BPE())
    # The GPT-2 split keeps a number's digits together, which Qwen's own does not: " 17" has to be one piece.
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,  # never reached: the merges run out when every word is one token
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(), trainer)
    bpe.add_special_tokens(list(SPECIAL_TOKENS))
    bpe.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in ("<|im_end|>", "<|endoftext|>")],
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _corpus() -> Iterator[str]:
    """Every word of the world, preceded by a space, and the words of the chat framing, which follow none."""
    yield from (f" {word}" for word in (*SYLLABLES, *CITIES, *YEARS))
    yield from _SENTENCES
    yield from ("user", "assistant", "system")
