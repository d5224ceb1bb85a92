"""The form `<think>...</think><answer>...</answer>`: strict, as LMM-R1 pays for it, and R1-V's more lenient one; and
the final answer of a response."""

import re

from mmsearch_trl.core.tags import last_enclosed
from mmsearch_trl.rewards.final_answer import boxes


_BETWEEN = re.compile(r"</think>\s*<answer>")


def final_answer(response: str) -> str | None:
    r"""What stands in the last `<answer>...</answer>`; without an `<answer>` at all the last `\boxed{...}` behind the
    think part, which is all that some prompts ask for. None where there is neither."""
    if "<answer>" in response:
        return last_enclosed(response, "answer")
    said = response.rpartition("</think>")[2]
    found = [] if "<think>" in said else boxes(said)
    return rf"\boxed{{{found[-1]}}}" if found else None


def strict(response: str) -> bool:
    """One `<think>` at the start, one `<answer>` directly behind its end, and nothing behind that one's end."""
    if response.count("<think>") != 1 or response.count("<answer>") != 1 or not response.startswith("<think>"):
        return False
    answer = response.partition("</think>")[2]
    end = len(answer) - len("</answer>")
    return answer.startswith("<answer>") and end > 0 and answer.find("</answer>") == end


def lenient(response: str) -> bool:
    """A think part, blanks, an answer part, and nothing around them; tags may stand in either again."""
    begins, ends = response.startswith("<think>"), response.endswith("</answer>")
    return begins and ends and _BETWEEN.search(response[len("<think>") : -len("</answer>")]) is not None
