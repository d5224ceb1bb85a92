"""What an evaluation leaves for people: a table for the terminal, and every row as JSON."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from mmsearch_trl.core.boundaries import writing
from mmsearch_trl.evaluation.summary import GroupSummary


_Column = tuple[str, Callable[[GroupSummary], str | None]]


def _accuracy(group: GroupSummary) -> str | None:
    # Wilson's interval, and no standard error: of all right, or all wrong, that would be 0.
    if group.accuracy is None:
        return None
    return f"{group.accuracy:.1%} ({group.accuracy_low:.1%}-{group.accuracy_high:.1%})"


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.1%}"


_COLUMNS: tuple[_Column, ...] = (
    ("accuracy (95 %)", _accuracy),
    ("search", lambda group: _share(group.search_ratio)),
    ("image", lambda group: _share(group.image_ratio)),
    ("text", lambda group: _share(group.text_ratio)),
    ("format", lambda group: _share(group.format)),
    ("reward", lambda group: f"{group.reward:.3f}"),
)
"""Heading, and what stands below it. A column of which no group has a value is left out."""


def summary_table(groups: Mapping[str, GroupSummary], title: str = "Evaluation") -> Table:
    """One line per group."""
    table, columns = _table(title, groups.values())
    for name, group in groups.items():
        table.add_row(_shown(name), str(group.n), *_cells(group, columns))
    return table


def comparison_table(
    before: Mapping[str, GroupSummary], after: Mapping[str, GroupSummary], title: str = "Before and after training"
) -> Table:
    """Two lines per group, before and after; a group that only one side has gets one line."""
    table, columns = _table(title, [*before.values(), *after.values()], "when")
    for name in dict.fromkeys([*before, *after]):
        stages = [(label, side[name]) for label, side in (("before", before), ("after", after)) if name in side]
        for position, (label, group) in enumerate(stages):
            last = position == len(stages) - 1
            heading = "" if position else _shown(name)
            style = "bold" if label == "after" else "dim"
            table.add_row(heading, label, str(group.n), *_cells(group, columns, style), end_section=last)
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


def _table(title: str, groups: Iterable[GroupSummary], *labels: str) -> tuple[Table, list[_Column]]:
    """An empty table, and what its last columns show."""
    groups = list(groups)
    columns = [column for column in _COLUMNS if any(column[1](group) is not None for group in groups)]
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
    for heading in ("n", *(heading for heading, _ in columns)):
        table.add_column(heading, justify="right")
    return table, columns


def _cells(group: GroupSummary, columns: Sequence[_Column], style: str = "") -> list[Text]:
    return [Text(cell(group) or "-", style=style) for _, cell in columns]


def _shown(name: str) -> Text:
    # A group is named by a data file: `Text` keeps rich from reading brackets in it as markup.
    return Text(name.replace("_", " "))
