"""Command lines as a person types them, for processes that `forks.py` starts."""

import re
from pathlib import Path
from typing import NamedTuple

from forks import Done, Forks
from runs import QUICK, grpo_arguments, sft_arguments


MMSEARCH, TRAIN, SFT, EVALUATE = (f"mmsearch_trl.{name}" for name in ("commands.main", "train", "sft", "evaluate"))


class Line(NamedTuple):
    """A command line with something wrong. `{place}`, `{home}` and `{world}` in it stand for folders.

    Attributes:
        message: What it is told by, or a part of that.
        plant: What is executed in the process before.
    """

    module: str
    arguments: list[str]
    message: str
    plant: str = ""


def mmsearch(*arguments: str, message: str, plant: str = "") -> Line:
    return Line(MMSEARCH, list(arguments), message, plant)


def run_of(module: str, message: str, plant: str = "", **overrides: object) -> Line:
    """A run, or an evaluation, of the world's recipe with these keys; `__` in them stands for a dot."""
    make, quick = (sft_arguments, {"max_steps": 1}) if module == SFT else (grpo_arguments, QUICK)
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    return Line(module, make(Path("{home}"), Path("out"), **(quick | keys)), message, plant)


def run(forks: Forks, line: Line, folder: Path, place: Path, home: Path) -> Done:
    """Run it in `folder` to its end."""

    def filled(text: str) -> str:
        return text.replace("{place}", str(place)).replace("{world}", str(home / "world")).replace("{home}", str(home))

    return forks.run(line.module, *map(filled, line.arguments), folder=folder, plant=line.plant)


def told(done: Done) -> list[str]:
    """The lines on standard error that are neither progress bars nor news."""
    lines = re.sub(r".*\[\d\d:\d\d.*?[\r\n]+", "", done.err).splitlines()
    return [line for line in lines if line and not line.startswith("INFO ")]
