"""What a run folder says about its run: the resolved recipe, without secrets, and the environment it ran in."""

import json
import platform
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from mmsearch_trl.core.boundaries import writing
from mmsearch_trl.core.redaction import REDACTED, redacted
from mmsearch_trl.recipe.recipe import Recipe


_HOW_IT_BEGAN = ("overwrite_output_dir", "resume_from_checkpoint")
_PACKAGES = ("mmsearch-trl", "trl", "transformers", "accelerate", "peft", "torch", "datasets", "deepspeed", "vllm")


def record_run(recipe: Recipe, folder: Path) -> None:
    """Write `recipe.yaml`, `environment.json`, and a `.gitignore` that keeps the data out of the Hub.

    A push takes the whole folder. Traces and evaluation rows hold the questions and images of the data set, which
    nobody agreed to publish with the weights; the Hub leaves out what a `.gitignore` names.

    Raises:
        UserError: the folder cannot be written.
    """
    # How the run was begun is not what it is: a later one by this file must not overwrite it unasked.
    what = {key: value for key, value in recipe.values.items() if key not in _HOW_IT_BEGAN}
    values = yaml.safe_dump(_without_redacted(redacted(what)), sort_keys=False)
    text = f"# Resolved from {recipe.path}, with what it extends and with overrides.\n{values}"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("traces/\nevaluation/\n", encoding="utf-8")
        (folder / "recipe.yaml").write_text(text, encoding="utf-8")
        (folder / "environment.json").write_text(json.dumps(environment(), indent=1), encoding="utf-8")


def next_steps(recipe: Recipe, folder: Path) -> list[str]:
    """Where a finished run lies, and what a person may type next."""
    name = shlex.quote(str(folder))
    lines = [f"saved: {folder}"]
    if getattr(recipe.trainer, "save_traces", False):
        lines.append(f"to read what it did: mmsearch view {name}")
    files = "" if recipe.data.eval_files else " --eval_files FILE"
    lines.append(f"to evaluate it: mmsearch eval --config {name}/recipe.yaml --model_name_or_path {name}{files}")
    return lines


def _without_redacted(value: Any) -> Any:
    """Without keys of which nothing is left; a text that held a secret among other words says so."""
    if isinstance(value, dict):
        return {key: _without_redacted(entry) for key, entry in value.items() if entry != REDACTED}
    return [_without_redacted(entry) for entry in value] if isinstance(value, list) else value


def environment() -> dict[str, str]:
    """Versions and devices, by name; no host name, user name or variable of the environment."""
    found = {"python": platform.python_version(), "system": platform.platform(), "processor": platform.machine()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found | {"gpus": ", ".join(gpus) or "none"}
