"""Prompts as files: plain text, or MMSearch-R1's pickled strings read without running anything that they hold.

A pickle can call any function while it is loaded. The unpickler here resolves no name whatever, so that only
containers and scalars can be built, and the result is refused unless it is one `str`.

The first prompt says where the image and the question stand with the slots `{image}` and `{question}`. They are filled
by plain replacement, so braces elsewhere, and braces in a question, mean nothing. `{tools}` may say where further
tools are described; without it they are at the end. Upstream's first prompt has no slots and ends with `<image> `:
there `<image>` is where the image stands, and the question is appended.
"""

import io
import pickle
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Self

from mmsearch_trl.core.boundaries import reading
from mmsearch_trl.core.errors import UserError


IMAGE_SLOT = "{image}"
QUESTION_SLOT = "{question}"
TOOLS_SLOT = "{tools}"
UPSTREAM_IMAGE_MARK = "<image>"


class _StrUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> object:
        raise pickle.UnpicklingError(f"it refers to {module_name}.{global_name}")

    def persistent_load(self, pid: object) -> object:
        raise pickle.UnpicklingError("it refers to an object outside the file")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """The texts that the environment speaks.

    Attributes:
        first_turn: The first user message, with exactly one `{image}` and one `{question}`, and perhaps one `{tools}`.
        after_image_search: Follows the results of an image search; may be empty.
        after_text_search: Follows the results of a text search; may be empty.
        forced_answer: Asks for the final answer when no search is left.
    """

    first_turn: str
    after_image_search: str
    after_text_search: str
    forced_answer: str

    @classmethod
    def load(
        cls,
        first_turn: str | Path | None = None,
        after_image_search: str | Path | None = None,
        after_text_search: str | Path | None = None,
        forced_answer: str | Path | None = None,
    ) -> Self:
        """Read the four prompts from files; None takes the one that ships with the package.

        Raises:
            UserError: a file is missing, is not a prompt, or holds a slot other than once.
        """
        return cls(
            first_turn=with_slots(load_prompt(first_turn, "first_turn"), first_turn or "first_turn.txt"),
            after_image_search=load_prompt(after_image_search, "after_image_search"),
            after_text_search=load_prompt(after_text_search, "after_text_search"),
            forced_answer=load_prompt(forced_answer, "forced_answer"),
        )


def load_prompt(path: str | Path | None, default_name: str) -> str:
    """Read one prompt: a UTF-8 `.txt` file, or a `.pkl` file that holds one `str`; None reads the shipped default.

    The byte order mark and the last newline that editors write are no part of it; a pickled prompt is kept as it is.

    Raises:
        UserError: the file is missing, of another kind, or a pickle of anything but one `str`.
    """
    if path is None:
        shipped = files("mmsearch_trl.protocol") / "prompts" / f"{default_name}.txt"
        return shipped.read_text(encoding="utf-8").removesuffix("\n")
    path = Path(path)
    if not path.is_file():
        raise UserError(f"prompt file not found: {path}")
    if path.suffix not in (".pkl", ".txt"):
        raise UserError(f"{path}: a prompt is a .txt file, or a .pkl file that holds one str")
    if path.suffix == ".pkl":
        with reading(path):
            content = path.read_bytes()
        return _unpickle_str(path, content)
    try:
        with reading(path):
            return path.read_text(encoding="utf-8-sig").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error}") from error


def with_slots(prompt: str, source: str | Path) -> str:
    """Bring a first prompt to the form with one `{image}` and one `{question}`; `source` is named in errors."""
    if IMAGE_SLOT not in prompt and QUESTION_SLOT not in prompt and prompt.rstrip().endswith(UPSTREAM_IMAGE_MARK):
        before, _, after = prompt.rpartition(UPSTREAM_IMAGE_MARK)
        return f"{before}{IMAGE_SLOT}{after}{QUESTION_SLOT}"
    for slot in (IMAGE_SLOT, QUESTION_SLOT):
        if prompt.count(slot) != 1:
            raise UserError(
                f"{source}: a first prompt holds {slot} exactly once, this one {prompt.count(slot)} times; "
                f"write {IMAGE_SLOT} and {QUESTION_SLOT} where they belong, or end the prompt with "
                f"{UPSTREAM_IMAGE_MARK}"
            )
    return prompt


def _unpickle_str(path: Path, content: bytes) -> str:
    try:
        value = _StrUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # a damaged pickle raises almost anything, from EOFError to IndexError
        raise UserError(f"{path}: not a pickled prompt (one str and nothing else): {error}") from error
    if type(value) is not str:
        raise UserError(f"{path}: not a pickled prompt: it holds a {type(value).__name__}, not a str")
    return value
