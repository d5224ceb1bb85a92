"""Three model families in miniature: the published control tokens on real tokenizers, and a template of each.

Ids are not the published ones and the vocabularies hold bytes or characters alone; how text is cut up around an added
token, normalised and decoded is as published: `tokenizer.json` of Qwen2.5-VL and Qwen3-VL (which adds
`<tool_response>` and `<think>`), Llama 3 to 3.2-Vision, Llama 2, and Gemma 2 and 3.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor


def _bars(*names: str) -> tuple[str, ...]:
    return tuple(f"<|{name}|>" for name in names)


def _pairs(*names: str) -> tuple[str, ...]:
    return tuple(f"<{mark}{name}>" for name in names for mark in ("", "/"))


QWEN_SPECIAL = _bars(
    *("endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start", "box_end"),
    *("quad_start", "quad_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad"),
)
QWEN_ADDED = (
    *_bars("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep"),
    *_pairs("tool_call", "tool_response", "think"),
)
LLAMA_NAMED = _bars(
    *("begin_of_text", "end_of_text", "finetune_right_pad_id", "step_id", "start_header_id", "end_header_id"),
    *("eom_id", "eot_id", "python_tag", "image"),
)
LLAMA_RESERVED = _bars(*(f"reserved_special_token_{number}" for number in range(251)))
LLAMA2 = ("<unk>", "<s>", "</s>")
GEMMA_SPECIAL = (
    *("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
    *("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
)
GEMMA_ADDED = (
    *("<mask>", "[multimodal]", "<2mass>", "[@BOS@]"),
    *_pairs("table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "blockquote", "strong", "em", "code"),
    *_pairs("h1", "h2", "h3", "h4", "h5", "h6", "b", "i", "u", "s", "sub", "sup"),
)
GEMMA_UNUSED = tuple(f"<unused{number}>" for number in range(99))
GEMMA_BLANKS = (*("\n" * count for count in range(1, 32)), *("\u2581" * count for count in range(2, 32)))

_BLOCKS = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for block in message['content'] %}"
    "{% if block['type'] == 'image' %}IMAGE{% else %}{{ block['text'] }}{% endif %}{% endfor %}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n"
    + _BLOCKS.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    + _BLOCKS.replace("IMAGE", "<|image|>")
    + "<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    # The processor writes an image's frame in the place of its placeholder; here the template does.
    + _BLOCKS.replace("IMAGE", "\n\n<start_of_image><image_soft_token><end_of_image>\n\n").replace(
        "block['text']", "block['text'] | trim"
    )
    + "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@dataclass(frozen=True)
class TinyProcessor:
    """What `ChatEncoder` needs of a processor."""

    tokenizer: PreTrainedTokenizerFast
    image_token: str
    image_processor: Any

    def apply_chat_template(self, messages: list[dict], **options: Any) -> Any:
        return self.tokenizer.apply_chat_template(messages, **options)


def qwen() -> PreTrainedTokenizerFast:
    tokenizer = _byte_level(normalizers.NFC())
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in QWEN_SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in QWEN_ADDED])
    return _fast(tokenizer, QWEN_TEMPLATE, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def llama() -> PreTrainedTokenizerFast:
    """Its configuration names three tokens; that the others are special is told by the tokenizer's file alone."""
    tokenizer = _byte_level()
    tokens = (*LLAMA_NAMED, *LLAMA_RESERVED)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|finetune_right_pad_id|>"}
    return _fast(tokenizer, LLAMA_TEMPLATE, **names)


def llama2() -> PreTrainedTokenizerFast:
    """SentencePiece, with a blank before every text; its role marks are no tokens."""
    tokenizer = _sentencepiece(LLAMA2, normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581"))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in LLAMA2])
    return _fast(tokenizer, None, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def gemma(*before: normalizers.Normalizer) -> PreTrainedTokenizerFast:
    """
    Args:
        before: Normalisers that work before the blanks are marked; Gemma has none, other SentencePiece models NFKC.
    """
    added = (*GEMMA_ADDED, *GEMMA_UNUSED, *GEMMA_BLANKS)
    tokenizer = _sentencepiece((*GEMMA_SPECIAL, *added), *before, normalizers.Replace(" ", "\u2581"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in GEMMA_SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    names = {"bos_token": "<bos>", "eos_token": "<end_of_turn>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return _fast(tokenizer, GEMMA_TEMPLATE, **names)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "qwen": qwen,
    "llama": llama,
    "llama2": llama2,
    "gemma": gemma,
    "gemma-nfkc": lambda: gemma(normalizers.NFKC()),
}
IMAGE_TOKENS = {"qwen": "<|image_pad|>", "llama": "<|image|>", "gemma": "<image_soft_token>"}


def processor(family: str) -> TinyProcessor:
    """A processor whose images are 1 to 4 tokens."""
    patches: dict[str, Any] = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    patches["size"] = {"shortest_edge": 28**2, "longest_edge": 56**2}
    return TinyProcessor(TOKENIZERS[family](), IMAGE_TOKENS[family], Qwen2VLImageProcessor(**patches))


def _byte_level(normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(first: Iterable[str], *steps: normalizers.Normalizer) -> Tokenizer:
    """BPE over characters, bytes for those it does not know, and a visible mark for a blank."""
    pieces = [*first, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *map(chr, range(0x21, 0x7F))]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(list(steps))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _fast(tokenizer: Tokenizer, template: str | None, **names: str) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)
    fast.chat_template = template
    return fast
