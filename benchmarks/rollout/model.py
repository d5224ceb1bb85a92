"""The checkpoint that is served: the world's tiny Qwen2.5-VL with a longer window and a template that TRL accepts.

TRL's tool loop wants a chat template that renders tool calls and a `tool` role. This one frames a tool's message
exactly as this project frames its replies, as a user's message, so both loops see the same tokens.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.protocol.mmsearch import MMSearchProtocol
from mmsearch_trl.world.model import build_config
from mmsearch_trl.world.protocol import PROMPTS, TEMPLATES
from mmsearch_trl.world.tokenizer import build_processor


WINDOW = 2048

TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ 'user' if message['role'] == 'tool' else message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for block in message['content'] %}"
    "{% if block['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in block %}{{ block['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['tool_calls'] %}{% for call in message['tool_calls'] %}"
    "<{{ call['function']['name'] }}>{{ call['function']['arguments'] | tojson }}</{{ call['function']['name'] }}>"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

RESPONSE_TEMPLATE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open_pattern": r"<(?P<name>text_search|search)>",
            "close_pattern": r"</(?:text_search|search)>\s*",
            "repeats": True,
            "content": "text",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": {"query": "{content}"}}},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}
"""How TRL reads a search out of a turn: by this protocol's own tags."""


def make_processor() -> Qwen2_5_VLProcessor:
    processor = build_processor()
    processor.chat_template = TEMPLATE
    processor.tokenizer.chat_template = TEMPLATE
    return processor


def make_model(processor: Qwen2_5_VLProcessor) -> Qwen2_5_VLForConditionalGeneration:
    config = build_config(processor)
    config.get_text_config().max_position_embeddings = WINDOW
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    tokenizer = processor.tokenizer
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def make_protocol(processor: Qwen2_5_VLProcessor) -> MMSearchProtocol:
    """The project's protocol in the world's short wording; its image caches are empty."""
    return MMSearchProtocol(ChatEncoder(processor), PROMPTS, TEMPLATES)


def write_checkpoint(folder: Path) -> None:
    processor = make_processor()
    make_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
