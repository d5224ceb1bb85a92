"""`mmsearch check`, and `--dry_run` of the commands that carry out a recipe: what would go wrong, in seconds."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.recipe.command_line import add_config, recipe_of


if TYPE_CHECKING:
    from mmsearch_trl.recipe.recipe import Recipe

Job = Literal["train", "sft", "eval"]
_GPUS_OF_A_NODE = 8
_STYLES = {"ok": "green", "warning": "yellow", "problem": "red"}


def add_check(check: argparse.ArgumentParser) -> None:
    """Declare the options."""
    check.usage = "mmsearch check RECIPE [--job train|sft|eval] [--key value ...]"
    add_config(check)
    job = "what the recipe is for; default: sft where it has no reward, else train"
    check.add_argument("--job", choices=("train", "sft", "eval"), help=job)
    check.add_argument(
        "--num_processes",
        type=int,
        metavar="N",
        help="that would train; default: one for each GPU here, 8 without one",
    )
    check.set_defaults(action=_check)


def _check(options: argparse.Namespace) -> None:
    # RECIPE is no option of the parser: of two words behind a key, `argparse` could not tell which is the recipe.
    if options.config is None and options.rest and not options.rest[0].startswith("-"):
        options.config = Path(options.rest.pop(0))
    check_recipe(*recipe_of(options, options.rest), options.job, options.num_processes)


def check_recipe(path: Path, overrides: Mapping[str, Any], job: Job | None, processes: int | None = None) -> None:
    """Print what can be told of a recipe before it is carried out, and the first prompt.

    Args:
        processes: That would carry it out.

    Raises:
        UserError: there is a problem; they were printed.
    """
    if processes is not None and processes < 1:
        raise UserError(f"--num_processes: {processes} is no number of processes")
    from rich.console import Console

    from mmsearch_trl.recipe.layers import kind_of
    from mmsearch_trl.recipe.written import read_written

    if job is None:
        job = "sft" if kind_of(path, overrides) == "sft" else "train"
    read_written(path, overrides, kind="sft" if job == "sft" else "grpo")
    problems = _report(path, overrides, job, processes, Console(emoji=False))
    if problems:
        raise UserError(f"{path}: {problems} problem{'s' if problems > 1 else ''}, told above")


def _report(path: Path, overrides: Mapping[str, Any], job: Job, processes: int | None, console: Any) -> int:
    from mmsearch_trl.recipe.finding import Finding, Level
    from mmsearch_trl.recipe.preflight import Preflight

    problems = 0

    def show(finding: Finding) -> None:
        nonlocal problems
        problems += finding.level is Level.PROBLEM
        style = _STYLES[finding.level]
        console.print(f"{finding.level:<8}", style=style, end=" ", highlight=False)
        console.print(f"{finding.name}: {finding.found}", highlight=False, markup=False, soft_wrap=True)

    recipe, device = _loaded(path, overrides, job)
    if device is not None:
        show(Finding(name="device", found=device, level=Level.PROBLEM))
    # Without a GPU here a recipe for some is told for the node that the accelerate configurations are written for.
    there = None if device is None else _GPUS_OF_A_NODE
    preflight = Preflight(recipe, evaluation=job == "eval", processes=processes or _gpus() or there)
    for finding in preflight.findings():
        show(finding)
    if not problems:
        shown = _first_demonstration(recipe) if job == "sft" else preflight.first_prompt()
        what = "conversation, as the model learns it" if job == "sft" else "prompt, as the model sees it"
        console.print(f"\nthe first {what}:\n", style="dim")
        console.print(shown, highlight=False, markup=False, soft_wrap=True)
    return problems


def _gpus() -> int:
    """How many processes a run of this machine would have, by its GPUs; 0 where `accelerate` has said, or there are
    none."""
    import torch

    return 0 if "WORLD_SIZE" in os.environ else torch.cuda.device_count()


def _loaded(path: Path, overrides: Mapping[str, Any], job: Job) -> "tuple[Recipe, str | None]":
    """The recipe; where only the device keeps it from being built, built for another one, and what is missing here."""
    from mmsearch_trl.recipe.recipe import load_recipe
    from mmsearch_trl.recipe.written import ON_A_CPU

    kind = "sft" if job == "sft" else "grpo"
    try:
        return load_recipe(path, overrides, kind=kind), None
    except UserError as error:
        recipe = load_recipe(path, {**overrides, **ON_A_CPU}, kind=kind)  # raises whatever else is wrong
        return recipe, f"{error} (the rest was looked at as if on a CPU)"


def _first_demonstration(recipe: "Recipe") -> str:
    from mmsearch_trl.recipe.build import build_protocol, load_processor
    from mmsearch_trl.sft import Demonstrations, demonstrations_of

    protocol = build_protocol(recipe, load_processor(recipe.model))
    found = demonstrations_of(recipe, protocol)
    if isinstance(found, Demonstrations):
        trajectory = found.trajectory(recipe.data.train_files[0], 0)
    else:
        trajectory = found.trajectory("train", 0)
    return protocol.chat.outlined(trajectory.token_ids)
