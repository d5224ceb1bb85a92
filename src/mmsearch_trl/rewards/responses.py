r"""The response in a query: prompt and completion as one text, as OpenRLHF's clients send them to a reward server.

The response stands behind the marker of the assistant's turn. Upstream looks for its first, by a pattern that for Phi
is not escaped and means "<" or "assistant" or ">\n" (D-3), leaves Phi's `<|end|>` in, and takes the whole query, with
the worked example in it, where nothing is behind the marker (D-4).
"""

import re
from typing import Literal

from mmsearch_trl.core.errors import UserError


Template = Literal["chatml", "qwen1", "base", "phi3", "phi4", "gemma3"]

_MARKERS: dict[str, str] = {
    "chatml": "<|im_start|>assistant\n",
    "qwen1": "<\uff5cAssistant\uff5c>",
    "base": "Assistant: ",
    "phi3": "<|assistant|>\n",
    "phi4": "<|assistant|>\n",
    "gemma3": "<start_of_turn>model\n",
}
_ENDS = ("<|im_end|>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<|endoftext|>", "<end_of_turn>")
_PHI_END = "<|end|>"


def response_of(query: str, template: Template) -> str:
    """What the model said last, without control tokens and outer blanks; "" where it said nothing.

    Raises:
        UserError: the query has no turn of an assistant.
    """
    # A model can write "Assistant: " itself, but no control token.
    _, marker, response = (query.partition if template == "base" else query.rpartition)(_MARKERS[template])
    if not marker:
        raise UserError(f"the query has no turn of the assistant: template {template} begins one by {marker!r}")
    return _without((*_ENDS, _PHI_END), response).strip()


def upstream_response(query: str, template: Template) -> str:
    """The same as LMM-R1 finds it."""
    marker = _MARKERS[template]
    found = re.search(marker if template.startswith("phi") else re.escape(marker), query)
    return (_without(_ENDS, query[found.end() :]).strip() if found else "") or query


def _without(tokens: tuple[str, ...], text: str) -> str:
    for token in tokens:
        text = text.replace(token, "")
    return text
