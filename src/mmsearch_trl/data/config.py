"""The data keys of a recipe."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.message import Message
from mmsearch_trl.data.answers import WORDS, Scoring
from mmsearch_trl.data.columns import Columns
from mmsearch_trl.data.messages import ConversationRules
from mmsearch_trl.data.opening import AS_WRITTEN, Opening
from mmsearch_trl.data.pixels import NO_LIMITS, ModelPixels, PixelLimits
from mmsearch_trl.data.reading import Reading
from mmsearch_trl.data.rows import OnError
from mmsearch_trl.protocol.prompt_files import Prompts


ProtocolName = Literal["mmsearch_r1", "mmsearch_r1_upstream", "search_r1", "direct"]

_MMSEARCH_KEYS = ("after_image_search_prompt", "after_text_search_prompt", "forced_answer_prompt", "reply_templates")


OF_QUESTIONS = ("columns", "image_folder", "min_pixels", "max_pixels")
"""Keys that say how a question is read."""
OF_ROWS = ("mixture", "max_samples", "max_samples_per_file", "max_prompt_length", "streaming", *OF_QUESTIONS)
"""Keys that say how rows are read; demonstrations of searches are no rows."""
TRAINING_KEYS = ("train_files", "mixture", "max_samples", "max_samples_per_file")
"""Of which an evaluation knows nothing."""


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
            "help": "Training data: files (.jsonl, .json, .csv, .tsv, .parquet, .arrow), folders of data, or data "
            "sets on the Hub as owner/name, owner/name@folder, owner/name:split."
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
    mixture: list[float] | None = field(
        default=None,
        metadata={
            "help": "A share for each of train_files; rows are drawn by them until each was drawn. Default: all rows "
            "of all files, once."
        },
    )
    max_samples: int | None = field(
        default=None, metadata={"help": "Train on the first so many rows, of all files or of the mixture."}
    )
    max_samples_per_file: int | None = field(
        default=None, metadata={"help": "Train on the first so many usable rows of each file; the rest is not read."}
    )
    columns: Columns = field(
        default_factory=Columns,
        metadata={"help": "Names of columns that no known layout has; its keys are below."},
    )
    image_folder: str | None = field(
        default=None,
        metadata={"help": "Where paths of images start; default: the folder of the file that names them."},
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read data sets of the Hub row by row as they arrive, without a copy of the whole; what is used "
            "of them (max_samples_per_file) is kept in the cache all the same."
        },
    )
    min_pixels: int | None = field(
        default=None,
        metadata={"help": "Fewest pixels of a question's image; default: what the model's image processor has."},
    )
    max_pixels: int | None = field(
        default=None,
        metadata={"help": "Most pixels of a question's image; default: what the model's image processor has."},
    )
    system_prompt: str | None = field(
        default=None,
        metadata={
            "help": "protocol direct: the system message of rows without one of their own; a text, or a .txt file."
        },
    )
    template: str | None = field(
        default=None,
        metadata={
            "help": "protocol direct: the text around the question of such rows, with {question} where it stands; a "
            "text, or a .txt file."
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
        for key in ("system_prompt", "template"):
            if self.protocol != "direct" and getattr(self, key) is not None:
                raise UserError(
                    f"{key} is a key of protocol direct; {self.protocol} has a first prompt of its own, which "
                    "first_turn_prompt replaces: take it out."
                )
        counts = ("max_prompt_length", "max_samples", "max_samples_per_file", "min_pixels", "max_pixels")
        for key in counts:
            if (number := getattr(self, key)) is not None and number < 1:
                raise UserError(f"{key} must be at least 1, got {number}.")
        if (self.max_pixels or math.inf) < (self.min_pixels or 1):
            raise UserError(f"min_pixels {self.min_pixels} is more than max_pixels {self.max_pixels}.")
        if self.resize_images and (self.min_pixels or self.max_pixels):
            raise UserError("resize_images brings images to sizes of its own: leave out min_pixels and max_pixels.")
        if self.mixture is not None:
            _check_shares(self.mixture, len(self.train_files))

    def reading(
        self,
        model_pixels: ModelPixels | None,
        rules: ConversationRules | None = None,
        scoring: Scoring = WORDS,
    ) -> Reading:
        """How rows are read.

        Args:
            model_pixels: Of the model's image processor; None where it has no such limits.
            rules: Read whole conversations.
            scoring: What the reward asks of gold answers.

        Raises:
            UserError: limits of images cannot be kept, or a text of the recipe's cannot be read or shown to the model.
        """
        pixels = PixelLimits(least=self.min_pixels, most=self.max_pixels)
        if model_pixels is not None:
            model_pixels.check(pixels)
        elif pixels != NO_LIMITS:
            raise UserError(
                "min_pixels and max_pixels need a vision-language model of the Qwen-VL family: take them out"
            )
        if self.image_folder is not None and not Path(self.image_folder).is_dir():
            raise UserError(f"image_folder: {self.image_folder} is no folder")
        opening = Opening.load(self.system_prompt, self.template)
        if rules is not None and opening != AS_WRITTEN:
            try:
                rules.check(opening.applied([Message("user", ("-",))]))
            except UserError as error:
                raise UserError(f"system_prompt, template: {error}") from error
        return Reading(
            columns=self.columns,
            image_folder=None if self.image_folder is None else Path(self.image_folder),
            streaming=self.streaming,
            pixels=pixels,
            model_pixels=model_pixels,
            rules=rules,
            opening=opening,
            scoring=scoring,
        )

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


def _check_shares(shares: Sequence[float], sets: int) -> None:
    """
    Raises:
        UserError: there is not one share for each set, or one is not over 0.
    """
    if len(shares) != sets:
        raise UserError(f"mixture holds {len(shares)} shares, and train_files {sets} sets: give one for each")
    if wrong := [share for share in shares if not (math.isfinite(share) and share > 0)]:
        raise UserError(f"mixture: a share is a number over 0, got {wrong[0]:g}: take the set out of train_files")
