"""A tiny encoder and a tiny cross-encoder with random weights, as checkpoints."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast


WORDS = [f"word{number}" for number in range(200)]


VOCABULARY = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *WORDS, "query", "passage", ":", "[SEP]"])}


def save_encoder(folder: Path, *, seed: int = 0) -> Path:
    """A BERT of 32 numbers over `WORDS`."""
    _save_tokenizer(folder, pairs=False)
    torch.manual_seed(seed)
    BertModel(_config()).eval().save_pretrained(folder)
    return folder


E5_PROMPTS = {"query": "query : ", "passage": "passage : "}


def describe(folder: Path, *, pooling: str = "mean", steps: Sequence[str] = ("Normalize",), **settings: Any) -> Path:
    """Say how an encoder's vectors are made, as sentence-transformers does; `settings` such as `prompts`."""
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for number, step in enumerate(["Pooling", *steps], start=1):
        place = {"path": f"{number}_{step}", "type": f"sentence_transformers.models.{step}"}
        modules.append({"idx": number, "name": str(number), **place})
    write(folder / "modules.json", modules)
    flags = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "lasttoken": "lasttoken"}
    names = {"mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "weightedmean": "weightedmean_tokens"} | flags
    of_mode = {f"pooling_mode_{name}": mode in pooling.split("+") for mode, name in names.items()}
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32} | of_mode)
    if settings:
        write(folder / "config_sentence_transformers.json", settings)
    return folder


def write(file: Path, values: Mapping[str, Any] | Sequence[Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(values))


def save_cross_encoder(folder: Path, *, labels: int = 1) -> Path:
    """A BERT that reads two texts over `WORDS` and says one number, which is not the same for all of them."""
    _save_tokenizer(folder, pairs=True)
    torch.manual_seed(0)
    model = BertForSequenceClassification(_config(num_labels=labels, initializer_range=0.5))
    model.eval().save_pretrained(folder)
    return folder


def _save_tokenizer(folder: Path, *, pairs: bool) -> None:
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if pairs:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A [SEP]", pair="$A [SEP] $B:1 [SEP]:1", special_tokens=[("[SEP]", VOCABULARY["[SEP]"])]
        )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)


def _config(**more: Any) -> BertConfig:
    return BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=600,
        **more,
    )
