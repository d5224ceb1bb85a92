"""Ctrl-C and SIGTERM at the commands: one line within two seconds, wherever the process is; a second one at once."""

import time
from pathlib import Path
from typing import NamedTuple

import pytest
from core.command_lines import EVALUATE, MMSEARCH, SFT, TRAIN, told
from forks import Done, Forks
from runs import QUICK, grpo_arguments, sft_arguments

from mmsearch_trl.trainer.checkpoint_folder import newest_complete


pytestmark = pytest.mark.slow

GO_ON = "the same command with --resume_from_checkpoint auto goes on"
SEND = """
import ctypes, os, signal, threading, time

def send(number=signal.SIGINT, *others):
    open("sent", "w").write(str(time.time()))
    os.kill(os.getpid(), number)
    for seconds, another in others:
        time.sleep(seconds)
        open("sent", "w").write(str(time.time()))
        os.kill(os.getpid(), another)

def meanwhile(*arguments):
    threading.Thread(target=send, args=arguments, daemon=True).start()
"""
IN_A_ROLLOUT = """
from mmsearch_trl.engine.transformers import TransformersEngine
def endless(self, batch):
    meanwhile({signals})
    time.sleep(60)
TransformersEngine._generate = endless
"""
IN_A_COMPUTATION = """
import torch
from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer
def _compute_loss(self, model, inputs):
    meanwhile()
    square = torch.ones(7000, 7000)
    while True:
        square @ square
MMSearchGRPOTrainer._compute_loss = _compute_loss
"""
WHILE_LOADING = """
from mmsearch_trl.recipe import build, start
def from_pretrained(*arguments):
    meanwhile()
    time.sleep(60)
build.load_whole = start.load_whole = from_pretrained
"""
WHILE_SEARCHING = """
from mmsearch_trl.search.runtime import SearchRuntime
async def search_text(self, *arguments, **options):
    import asyncio
    meanwhile()
    await asyncio.sleep(60)
for name in [name for name in dir(SearchRuntime) if "text" in name and not name.startswith("_")]:
    setattr(SearchRuntime, name, search_text)
"""


class Ended(NamedTuple):
    done: Done
    seconds: float
    """After the last signal."""


def ended(forks: Forks, module: str, arguments: list[str], plant: str, folder: Path) -> Ended:
    done = forks.run(module, *arguments, folder=folder, plant=SEND + plant)
    return Ended(done, time.time() - float((folder / "sent").read_text()))


def said(end: Ended) -> tuple[int, list[str]]:
    """The status, and what stands on standard error but for transformers' own lines."""
    return end.done.status, [text for text in told(end.done) if not text.startswith("[transformers]")]


def test_an_interrupt_in_a_rollout_that_does_not_end(forks: Forks, world_home: Path, tmp_path: Path) -> None:
    arguments = grpo_arguments(world_home, Path("out"), **QUICK)
    end = ended(forks, TRAIN, arguments, IN_A_ROLLOUT.format(signals=""), tmp_path)
    assert said(end) == (130, [f"mmsearch: interrupted: no step is saved; {GO_ON}"]) and end.seconds < 2.0


def test_the_second_interrupt_ends_at_once(forks: Forks, world_home: Path, tmp_path: Path) -> None:
    arguments = grpo_arguments(world_home, Path("out"), **QUICK)
    signals = "signal.SIGINT, (0.3, signal.SIGINT)"
    end = ended(forks, TRAIN, arguments, IN_A_ROLLOUT.format(signals=signals), tmp_path)
    assert said(end) == (130, [f"mmsearch: interrupted: no step is saved; {GO_ON}"]) and end.seconds < 0.5


@pytest.mark.parametrize("plant", [IN_A_COMPUTATION, WHILE_LOADING], ids=["computing", "loading"])
def test_an_interrupt_elsewhere_in_training(plant: str, forks: Forks, world_home: Path, tmp_path: Path) -> None:
    end = ended(forks, TRAIN, grpo_arguments(world_home, Path("out"), **QUICK), plant, tmp_path)
    assert said(end) == (130, [f"mmsearch: interrupted: no step is saved; {GO_ON}"]) and end.seconds < 2.0


def test_an_interrupt_of_other_commands(forks: Forks, world_home: Path, tmp_path: Path) -> None:
    line = "mmsearch: interrupted"
    saying = f"{line}: no step is saved; {GO_ON}"
    end = ended(forks, SFT, sft_arguments(world_home, Path("out"), max_steps=1), WHILE_LOADING, tmp_path)
    assert said(end) == (130, [saying]) and end.seconds < 2.0
    keys = QUICK | {"eval_files": world_home / "world" / "known.jsonl"}
    end = ended(forks, EVALUATE, grpo_arguments(world_home, Path("out"), **keys), WHILE_LOADING, tmp_path)
    assert said(end) == (130, [f"{line}: the same command goes on with what is evaluated"]) and end.seconds < 2.0
    text = ["search", "tower", "--text.backend", "bm25", "--text.path", str(world_home / "world" / "text_index")]
    end = ended(forks, MMSEARCH, text, WHILE_SEARCHING, tmp_path)
    assert said(end) == (130, [line]) and end.seconds < 2.0


def test_sigterm_in_a_rollout_saves_the_last_step_and_says_so(forks: Forks, world_home: Path, tmp_path: Path) -> None:
    plant = """
from mmsearch_trl.rollout.rollouter import Rollouter
run, calls = Rollouter.run, []
def second(self, *arguments, **options):
    calls.append(1)
    if len(calls) == 2:
        meanwhile(signal.SIGTERM)
    return run(self, *arguments, **options)
Rollouter.run = second
"""
    arguments = grpo_arguments(world_home, Path("out"), **(QUICK | {"max_steps": 3}))
    end = ended(forks, TRAIN, arguments, plant, tmp_path)
    saved = newest_complete(tmp_path / "out")
    assert saved is not None
    assert said(end) == (143, [f"mmsearch: terminated: out/{saved.name} is saved; {GO_ON}"]) and end.seconds < 10.0
    resumed = forks.run(TRAIN, *arguments, "--resume_from_checkpoint", "auto", folder=tmp_path)
    assert resumed.status == 0 and newest_complete(tmp_path / "out") == saved


def test_sigterm_anywhere_else_is_one_line_too(forks: Forks, world_home: Path, tmp_path: Path) -> None:
    plant = WHILE_LOADING.replace("meanwhile()", "meanwhile(signal.SIGTERM)")
    end = ended(forks, TRAIN, grpo_arguments(world_home, Path("out"), **QUICK), plant, tmp_path)
    assert said(end) == (143, [f"mmsearch: terminated: no step is saved; {GO_ON}"]) and end.seconds < 2.0


def test_in_the_background_of_a_shell_an_interrupt_is_no_concern_of_ours(
    forks: Forks, world_home: Path, tmp_path: Path
) -> None:
    ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN)\nsend()\nmeanwhile()\n"
    text = ["index", "info", str(world_home / "world" / "text_index")]
    assert ended(forks, MMSEARCH, text, ignored, tmp_path).done.status == 0
