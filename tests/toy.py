"""The toy tokenizer of the conformance vectors: Qwen's special ids, and every other character is its code point."""

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from mmsearch_trl.world.tokenizer import CHAT_TEMPLATE


PAD, START, END = 151643, 151644, 151645
VISION_START, VISION_END, IMAGE_PAD, LAST = 151652, 151653, 151655, 151664
_NAMES = {
    PAD: "<|endoftext|>",
    START: "<|im_start|>",
    END: "<|im_end|>",
    VISION_START: "<|vision_start|>",
    VISION_END: "<|vision_end|>",
    151654: "<|vision_pad|>",
    IMAGE_PAD: "<|image_pad|>",
    151656: "<|video_pad|>",
    151657: "<tool_call>",
    LAST: "<|file_sep|>",
}
_SURROGATES = range(0xD800, 0xE000)


def build_tokenizer() -> PreTrainedTokenizerFast:
    characters = {chr(code): code for code in range(1, 0x10000) if code not in _SURROGATES}
    tokenizer = Tokenizer(models.WordLevel(characters | {name: id for id, name in _NAMES.items()}, unk_token="\ufffd"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = [name for name in _NAMES.values() if name.startswith("<|")]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False, special=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="\ufffd",
        additional_special_tokens=special[3:],
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> Qwen2_5_VLProcessor:
    """A processor that leaves images whose sides are multiples of 28 as they are."""
    patches: dict[str, Any] = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 4096}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(**patches, size=size),
        tokenizer=build_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**patches, size=size),
        chat_template=CHAT_TEMPLATE,
    )
