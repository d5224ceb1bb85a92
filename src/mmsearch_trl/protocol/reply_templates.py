"""How replies are put into words, and where those words can be replaced by a file."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml

from mmsearch_trl.core.boundaries import reading
from mmsearch_trl.core.errors import UserError, shortened
from mmsearch_trl.protocol.yaml_text import read_yaml


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyTemplates:
    """How replies are put; the defaults are the released checkpoints' own. Slots are filled literally.

    `{image}` in `image_item` is where the thumbnail stands; a hit without one is written by `image_item_title_only`.
    """

    opening: str = "Searched results: <information>"
    closing: str = "</information>\n"
    tool_opening: str = "Result of {tool}: <information>"
    question: str = "Original user's question: {question}\n"
    image_header: str = (
        "[Image Search Results] The result of the image search consists of web page information related to the image "
        "from the user's original question. Each result includes the main image from the web page and its title, "
        "ranked in descending order of search relevance, as demonstrated below:\n"
    )
    image_item: str = "{rank}. image: {image}\ntitle: {title}\n"
    image_item_title_only: str = "{rank}. title: {title}\n"
    text_header: str = (
        "[Text Search Results] Below are the text summaries of the most relevant webpages related to your query, "
        "ranked in descending order of relevance:\n"
    )
    text_item: str = "{rank}. ({source}) {text}\n"
    nothing_found: str = "[{tool}] The search found nothing.\n"
    failure: str = "[{tool}] The search could not be carried out ({reason}). Please reason with what you know."
    overflow: str = "[{tool}] The results are too long to be shown. Please reason with what you know."

    def __post_init__(self) -> None:
        for item in fields(self):
            if not isinstance(getattr(self, item.name), str):
                raise UserError(f"wording {item.name} must be text, got {getattr(self, item.name)!r}")
        if self.image_item.count("{image}") != 1:
            raise UserError(f"wording image_item must hold {{image}} once, got {self.image_item!r}")

    @classmethod
    def load(cls, path: str | Path) -> "ReplyTemplates":
        """Read a YAML mapping of these fields; those it leaves out keep their defaults.

        Raises:
            UserError: The file is missing or no mapping, or a field is unknown or wrong.
        """
        with reading(path):
            content = Path(path).read_bytes()
        values = read_yaml(content, str(path))
        known = [item.name for item in fields(cls)]
        if not isinstance(values, dict) or not set(values) <= set(known):
            raise UserError(
                f"{path}: reply templates is a mapping of {', '.join(known)}; got {shortened(repr(values), 300)}"
            )
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def save(self, path: Path) -> None:
        path.write_text(yaml.safe_dump(asdict(self), allow_unicode=True, sort_keys=False), encoding="utf-8")


UPSTREAM_FAILURE = (
    "[{tool}] There is an error encountered in performing search. Please reason with your own capaibilities."
)
"""Upstream's sentence, its spelling included: checkpoints were trained on it."""
