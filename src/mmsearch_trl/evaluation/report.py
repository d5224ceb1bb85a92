"""What an evaluation leaves for people: a table for the terminal, and every row as JSON."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from mmsearch_trl.core.boundaries import writing
from mmsearch_trl.evaluation.metrics import GroupSummary


_COLUMNS: tuple[tuple[str, Callable[[GroupSummary], float], bool], ...] = (
    ("search", lambda group: group.search_ratio, True),
    ("image", lambda group: group.image_ratio, True),
    ("text", lambda group: group.text_ratio, True),
    ("format", lambda group: group.format, True),
    ("reward", lambda group: group.reward, False),
)
"""Heading, value, and whether it is a share; accuracy stands before them, with its 95 % interval."""


def summary_table(groups: Mapping[str, GroupSummary], title: str = "Evaluation") -> Table:
    """One line per group."""
    table = _table(title)
    for name, group in groups.items():
        table.add_row(_shown(name), str(group.n), *_cells(group))
    return table


def comparison_table(
    before: Mapping[str, GroupSummary], after: Mapping[str, GroupSummary], title: str = "Before and after training"
) -> Table:
    """Two lines per group, before and after; a group that only one side has gets one line."""
    table = _table(title, "when")
    for name in dict.fromkeys([*before, *after]):
        stages = [(label, side[name]) for label, side in (("before", before), ("after", after)) if name in side]
        for position, (label, group) in enumerate(stages):
            last = position == len(stages) - 1
            heading = "" if position else _shown(name)
            style = "bold" if label == "after" else "dim"
            table.add_row(heading, label, str(group.n), *_cells(group, style), end_section=last)
    return table


def save_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> Path:
    """Save rows as one JSON list of objects (pandas: `orient="records"`) and return the path.

    Rows are taken one by one. The file appears whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("w", encoding="ascii") as file:
                # What `json.dumps(list(rows), indent=1)` writes; a line end within a string is escaped.
                before, end = "[\n ", "[]\n"
                for row in rows:
                    file.write(before + json.dumps(row, indent=1, ensure_ascii=True).replace("\n", "\n "))
                    before, end = ",\n ", "\n]\n"
                file.write(end)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    return path


def _table(title: str, *labels: str) -> Table:
    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for heading in ("group", *labels):
        table.add_column(heading)
    for heading in ("n", "accuracy (95 %)", *(heading for heading, _, _ in _COLUMNS)):
        table.add_column(heading, justify="right")
    return table


def _cells(group: GroupSummary, style: str = "") -> list[Text]:
    # Wilson's interval, and no standard error: of all right, or all wrong, that would be 0.
    accuracy = f"{group.accuracy:.1%} ({group.accuracy_low:.1%}-{group.accuracy_high:.1%})"
    values = (f"{value(group):.1%}" if share else f"{value(group):.3f}" for _, value, share in _COLUMNS)
    return [Text(cell, style=style) for cell in (accuracy, *values)]


def _shown(name: str) -> Text:
    # A group is named by a data file: `Text` keeps rich from reading brackets in it as markup.
    return Text(name.replace("_", " "))
