"""A small language model with Search-R1's tags: a byte-level tokenizer in which a tag is several tokens.

`>` and a line break are one token, as in Qwen's vocabulary, so that a closing tag can end inside a token.
"""

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.protocol.search_r1 import NOTICE, SearchR1Protocol, load_search_r1_prompt


SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen2.5's, for texts: content is no list of blocks."""
_SPLIT = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Where Qwen2.5 splits, contractions aside: a line break belongs to the signs before it."""


def build_tokenizer(words: str = "") -> PreTrainedTokenizerFast:
    """Train the tokenizer on the prompt, the notice, the tags and `words`; the same ids every time."""
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_SPLIT), "isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tags = "".join(f" <{tag}> </{tag}>" for tag in ("think", "search", "answer", "information"))
    bpe.train_from_iterator([load_search_r1_prompt(), NOTICE, tags, words, "user assistant system"], trainer)
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_protocol(words: str = "", **options: Any) -> SearchR1Protocol:
    return SearchR1Protocol(ChatEncoder(build_tokenizer(words)), **options)


def build_model(tokenizer: PreTrainedTokenizerFast, *, std: float = 0.1, hidden: int = 64) -> Qwen2ForCausalLM:
    ids: dict[str, Any] = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        **ids,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config)
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.data.normal_(std=std)
    return model.eval()


Encode = Callable[[str], list[int]]


def encoder(protocol: SearchR1Protocol) -> Encode:
    return lambda text: protocol.chat.tokenizer(text, add_special_tokens=False).input_ids
