"""What a run folder says about its run: the resolved recipe, without secrets, and the environment it ran in."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import yaml

from mmsearch_trl.recipe.recipe import Recipe


_SECRETS = ("hub_token", "push_to_hub_token")
_PACKAGES = ("mmsearch-trl", "trl", "transformers", "accelerate", "peft", "torch", "datasets", "deepspeed", "vllm")


def record_run(recipe: Recipe, folder: Path) -> None:
    """Write `recipe.yaml`, `environment.json`, and a `.gitignore` that keeps the data out of the Hub.

    A push takes the whole folder. Traces and evaluation rows hold the questions and images of the data set, which
    nobody agreed to publish with the weights; the Hub leaves out what a `.gitignore` names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("traces/\nevaluation/\n", encoding="utf-8")
    values = {key: value for key, value in recipe.values.items() if key not in _SECRETS}
    text = f"# Resolved from {recipe.path}, overrides included.\n" + yaml.safe_dump(values, sort_keys=False)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps(environment(), indent=1), encoding="utf-8")


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
