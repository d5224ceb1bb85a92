"""A tiny encoder with random weights, as a checkpoint."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast


WORDS = [f"word{number}" for number in range(200)]


def save_encoder(folder: Path, *, seed: int = 0) -> Path:
    """A BERT of 32 numbers over `WORDS`."""
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *WORDS, "query", "passage", ":"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=600,
    )
    BertModel(config).eval().save_pretrained(folder)
    return folder
