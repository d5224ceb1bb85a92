"""The data keys of a recipe."""

from dataclasses import dataclass, field
from typing import Literal

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.rows import OnError
from mmsearch_trl.protocol.prompt_files import Prompts


ProtocolName = Literal["mmsearch_r1", "mmsearch_r1_upstream", "search_r1", "direct"]

_MMSEARCH_KEYS = ("after_image_search_prompt", "after_text_search_prompt", "forced_answer_prompt", "reply_templates")


@dataclass(kw_only=True)
class DataConfig:
    """Which questions, in which tags and prompts, and what happens to a bad row.

    Paths start at the working directory.
    """

    protocol: ProtocolName = field(
        default="mmsearch_r1",
        metadata={
            "help": "mmsearch_r1: reason, image_search, text_search and answer, a user message for each reply. "
            "mmsearch_r1_upstream: the same, to the byte as MMSearch-R1 rolls out, its quirks included. "
            "search_r1: think, search, information and answer in one turn. direct: no tool; the conversation of a row "
            "is the prompt, and the whole turn is the answer. The keys of `reward` go with it."
        },
    )

    train_files: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Training data: MMSearch-R1 or Search-R1 parquet files, .jsonl files, or folders that hold one."
        },
    )
    eval_files: list[str] = field(
        default_factory=list, metadata={"help": "Evaluation data, of the same kinds; empty for none."}
    )
    question_files: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Supervised recipes that train on traces: the data files from which the traces' questions came. "
            "Their images are used in full size, where a trace keeps 384 pixels."
        },
    )
    on_bad_row: OnError = field(
        default="raise",
        metadata={"help": "A row without readable image or right answer: stop (raise), or leave it out (skip)."},
    )
    resize_images: bool = field(
        default=False,
        metadata={"help": "Bring question images to 512x512..2x672x672 pixels, as MMSearch-R1 does."},
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Leave out rows whose first prompt has more tokens than this, image tokens included."},
    )
    first_turn_prompt: str | None = field(
        default=None, metadata={"help": "A .txt or .pkl file that replaces the shipped first prompt."}
    )
    after_image_search_prompt: str | None = field(
        default=None, metadata={"help": "Replaces the text after the results of an image search."}
    )
    after_text_search_prompt: str | None = field(
        default=None, metadata={"help": "Replaces the text after the results of a text search."}
    )
    forced_answer_prompt: str | None = field(
        default=None, metadata={"help": "Replaces the text that asks for the final answer."}
    )

    reply_templates: str | None = field(
        default=None,
        metadata={"help": "A YAML file that replaces the templates of replies."},
    )

    def __post_init__(self) -> None:
        foreign = {"search_r1": _MMSEARCH_KEYS, "direct": ("first_turn_prompt", *_MMSEARCH_KEYS)}
        for key in foreign.get(self.protocol, ()):
            if getattr(self, key) is not None:
                raise UserError(f"{key} is a text of protocol mmsearch_r1; {self.protocol} has none, take it out.")
        if self.max_prompt_length is not None and self.max_prompt_length < 1:
            raise UserError(f"max_prompt_length must be at least 1, got {self.max_prompt_length}.")

    def prompts(self) -> Prompts:
        """The prompts of the named files, the shipped ones where none is named.

        Raises:
            UserError: a file is missing or is no prompt.
        """
        return Prompts.load(
            self.first_turn_prompt,
            self.after_image_search_prompt,
            self.after_text_search_prompt,
            self.forced_answer_prompt,
        )
