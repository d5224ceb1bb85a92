"""The form a transcript must have, and what in it counts as a search.

A turn is well formed when, stripped, it opens with one `<reason>...</reason>`, ends with exactly one action (answer,
image search, text search, or a call of a tool that is known) and holds no tag of another action. Free text between
reason and action is allowed, an empty reason too; tags are case- and space-sensitive.

A search is *counted* by its tag alone: asked for is asked for, whether or not a tool ran, and even when it is only
quoted. The last of several turns never counts, because nothing could have been searched after it.
"""

from collections.abc import Sequence

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.tags import enclosed, last_enclosed


_REASON = ("<reason>", "</reason>")
_ANSWER = ("<answer>", "</answer>")
_TEXT_SEARCH = ("<text_search>", "</text_search>")
_IMAGE_SEARCH = "<search><img></search>"

_THREE_ROUND_SEQUENCES = frozenset(
    {
        (ActionKind.ANSWER,),
        (ActionKind.IMAGE_SEARCH, ActionKind.ANSWER),
        (ActionKind.TEXT_SEARCH, ActionKind.ANSWER),
        (ActionKind.IMAGE_SEARCH, ActionKind.TEXT_SEARCH, ActionKind.ANSWER),
    }
)


def extract_answer(turn: str) -> str | None:
    """Return the stripped content of the last `<answer>...</answer>` (may span lines), or None without one."""
    return last_enclosed(turn, "answer")


def well_formed_action(turn: str, tools: Sequence[str] = ()) -> ActionKind:
    """The action of a turn in perfect form, else `ActionKind.NONE`; at most one kind can apply.

    Args:
        tools: Names of the tools besides the searches, which are their tags.
    """
    turn = turn.strip()
    if not turn.startswith(_REASON[0]) or not _once(turn, _REASON):
        return ActionKind.NONE
    # With the reason counted and at the start, the action's opening tag must lie in what follows it.
    action = turn.partition(_REASON[1])[2]
    has_image, has_text, has_answer = _IMAGE_SEARCH in turn, _any(turn, _TEXT_SEARCH), _any(turn, _ANSWER)
    if called := [tags for tool in tools if _any(turn, tags := (f"<{tool}>", f"</{tool}>"))]:
        alone = len(called) == 1 and not (has_image or has_text or has_answer)
        return ActionKind.TOOL if alone and _ends_with(turn, action, called[0]) else ActionKind.NONE
    if has_answer and not has_image and not has_text:
        return ActionKind.ANSWER if _ends_with(turn, action, _ANSWER) else ActionKind.NONE
    if has_text and not has_image and not has_answer:
        return ActionKind.TEXT_SEARCH if _ends_with(turn, action, _TEXT_SEARCH) else ActionKind.NONE
    if has_image and not has_text and not has_answer:
        alone = turn.count(_IMAGE_SEARCH) == 1 and action.endswith(_IMAGE_SEARCH)
        return ActionKind.IMAGE_SEARCH if alone else ActionKind.NONE
    return ActionKind.NONE


def any_rounds_valid(turns: Sequence[str], tools: Sequence[str] = ()) -> bool:
    """Any number of calls in any order, then one answer, every turn well formed."""
    kinds = [well_formed_action(turn, tools) for turn in turns]
    calls = (ActionKind.IMAGE_SEARCH, ActionKind.TEXT_SEARCH, ActionKind.TOOL)
    return bool(kinds) and kinds[-1] is ActionKind.ANSWER and all(kind in calls for kind in kinds[:-1])


def three_rounds_valid(turns: Sequence[str]) -> bool:
    """The published rule: answer; image or text search, answer; image search, text search, answer; nothing else.

    MMSearch-R1's own code raises on no turn and on more than three; here both are simply not valid, so that one odd
    transcript cannot end a training step.
    """
    return tuple(well_formed_action(turn) for turn in turns) in _THREE_ROUND_SEQUENCES


def single_search_valid(transcript: str) -> bool:
    """The April-2025 rule on the whole transcript: one answer, and one reason, or two when it searched.

    Pairs are counted, not ordered, and a pair that spans lines does not count.
    """
    lines = transcript.split("\n")
    reasons, answers = (sum(1 for line in lines for _ in enclosed(line, tag)) for tag in ("reason", "answer"))
    return answers == 1 and reasons == (2 if asks_search(transcript) else 1)


def asks_search(turn: str) -> bool:
    """True when a turn holds the image-search tag, or both text-search tags."""
    return _IMAGE_SEARCH in turn or all(tag in turn for tag in _TEXT_SEARCH)


def count_searches(turns: Sequence[str]) -> int:
    """Turns that ask for a search, each at most once; all turns but the last, or the only one."""
    return sum(asks_search(turn) for turn in (turns[:-1] or turns))


def _once(text: str, tags: tuple[str, str]) -> bool:
    return all(text.count(tag) == 1 for tag in tags)


def _any(text: str, tags: tuple[str, str]) -> bool:
    return any(tag in text for tag in tags)


def _ends_with(turn: str, action: str, tags: tuple[str, str]) -> bool:
    return _once(turn, tags) and tags[0] in action and action.endswith(tags[1])
