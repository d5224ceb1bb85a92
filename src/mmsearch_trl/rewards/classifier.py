"""Reward models: sequence classifiers that read a whole chat."""

from typing import Any

from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mmsearch_trl.core.boundaries import loading
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.models.location import find_model


def load_classifier(name: str) -> tuple[Any, Any]:
    """A reward model of one logit, and its tokenizer.

    Raises:
        UserError: there is none, or its tokenizer has no chat template.
    """
    find_model("reward.models", name)
    with loading("the reward model", name, SafetensorError):
        model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=1, dtype="auto")
        tokenizer = AutoTokenizer.from_pretrained(name)
    if tokenizer.chat_template is None:
        raise UserError(f"reward.models: the tokenizer of {name} has no chat template, and a reward model reads chats")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer
