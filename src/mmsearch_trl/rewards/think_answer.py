"""The form `<think>...</think><answer>...</answer>`: strict, as LMM-R1 pays for it, and R1-V's more lenient one."""

import re


_BETWEEN = re.compile(r"</think>\s*<answer>")


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
