"""`mmsearch stages`: one recipe after the other, each from what the former exported."""

import argparse
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

from mmsearch_trl.commands.launch import add_launch
from mmsearch_trl.core.children import ending_with_us
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.recipe.command_line import keys_of


def add_stages(stages: argparse.ArgumentParser) -> None:
    """Declare the options."""
    stages.usage = "mmsearch stages RECIPE [RECIPE ...] [--STAGE.key value ...]"
    add_launch(stages)
    stages.add_argument(
        "--output_dir", metavar="DIR", help="where it is recorded what was done; default: runs/ and the stages' names"
    )
    stages.set_defaults(action=_stages, takes_rest=True, config=None)


def _stages(options: argparse.Namespace) -> None:
    # Recipes are no options of the parser: it could not tell a recipe from a value behind a key.
    words = list(options.rest)
    count = next((number for number, word in enumerate(words) if word.startswith("--")), len(words))
    if not count:
        raise UserError("command line: name the recipes in their order, or one file with `stages`")
    from mmsearch_trl.recipe.stage_list import read_stages
    from mmsearch_trl.stages import run_stages

    if options.num_machines is not None:
        raise UserError(
            "--num_machines: the stages of several machines are run one by one, with `mmsearch train` on each of them"
        )
    keys = keys_of(words[count:]) | ({} if options.output_dir is None else {"output_dir": options.output_dir})
    stages = read_stages([Path(word) for word in words[:count]], keys)
    launched = [
        replace(
            stage,
            num_processes=stage.num_processes or options.num_processes,
            accelerate=stage.accelerate or options.accelerate,
        )
        for stage in stages.stages
    ]
    run_stages(replace(stages, stages=tuple(launched)), run_command)


def run_command(words: Sequence[str]) -> int:
    """Run `mmsearch` in a process of its own, to which signals are handed on: it says what is saved, and ends."""
    command = [sys.executable, "-m", "mmsearch_trl", *words]
    # In a session of its own, or a terminal would interrupt it beside us, and it would take that for the second time.
    # Inheritable files stay open: the lock of the stages (`stages.py`).
    process = subprocess.Popen(ending_with_us(command), start_new_session=True, close_fds=False)
    with _handed_on(process):
        return process.wait()


@contextmanager
def _handed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    def hand_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, hand_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
