"""Whether what a recipe names lies where it says: told before anything heavy is imported."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.config import DataConfig
from mmsearch_trl.data.sources import find_source
from mmsearch_trl.models.location import find_model
from mmsearch_trl.search.config import SearchConfig


def check_files_of(
    path: Path, values: Mapping[str, Any], data: DataConfig, search: SearchConfig, *, evaluation: bool = False
) -> None:
    """Look for the model's folder, the data and the indexes, and for a place for the output; nothing is fetched.

    Args:
        path: Of the recipe, for messages.
        values: Its keys.
        evaluation: Training data are not asked for.

    Raises:
        UserError: something is not there, or the output cannot be written.
    """
    if name := values.get("model_name_or_path"):
        find_model(f"{path}: model_name_or_path", str(name), weights=False, hub=False)
    for key in ("eval_files",) if evaluation else ("train_files", "eval_files", "question_files"):
        for file in getattr(data, key):
            try:
                find_source(file)
            except UserError as error:
                raise UserError(f"{path}: {key}: {error}") from error
    _check_output(path, Path(str(values.get("output_dir") or ".")))
    for section in (search.image, search.text):
        try:
            if section is not None:
                section.check()
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def _check_output(path: Path, out: Path) -> None:
    out = out.absolute()
    there = next(folder for folder in (out, *out.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"{path}: output_dir: {there} is no folder that can be written to")
