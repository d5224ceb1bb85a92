"""The world's protocol: MMSearch-R1's tags and turns with wording of a few tokens, for a tiny model."""

from transformers import ProcessorMixin

from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.protocol.mmsearch import MMSearchProtocol
from mmsearch_trl.protocol.prompt_files import Prompts
from mmsearch_trl.protocol.reply_templates import ReplyTemplates


PROMPTS = Prompts(
    first_turn="{image} {question}", after_image_search="", after_text_search="", forced_answer=" answer"
)

TEMPLATES = ReplyTemplates(
    opening="<information>",
    closing="</information>",
    question="",
    image_header="",
    image_item="{image} {title}\n",
    image_item_title_only=" {title}\n",
    text_header="",
    text_item=" {title} {text}\n",
    nothing_found=" nothing\n",
    failure=" search failed",
    overflow=" too long",
)


def build_protocol(processor: ProcessorMixin) -> MMSearchProtocol:
    """The world's protocol for a processor that `build_processor` made, or one reloaded from disk."""
    return MMSearchProtocol(ChatEncoder(processor), PROMPTS, TEMPLATES)
