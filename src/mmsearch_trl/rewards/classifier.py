"""Reward models: sequence classifiers that read a whole chat."""

from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from mmsearch_trl.core.boundaries import loading
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.models.location import find_model


def load_classifier(name: str) -> tuple[Any, Any]:
    """A reward model of one logit, and its tokenizer.

    Raises:
        UserError: there is none, it was not trained to give one number, or its tokenizer has no chat template.
    """
    find_model("reward.models", name)
    with loading("the reward model", name, SafetensorError):
        labels = AutoConfig.from_pretrained(name).num_labels
        if labels != 1:
            raise UserError(f"reward.models: {name} is no reward model: it has {labels} labels, and not one")
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            name, dtype="auto", output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(name)
    if missing := sorted(loaded["missing_keys"]):
        raise UserError(f"reward.models: {name} is no reward model: it has no weights for {missing[0]}")
    if tokenizer.chat_template is None:
        raise UserError(f"reward.models: the tokenizer of {name} has no chat template, and a reward model reads chats")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer
