"""A process of ours that must not outlive the one that started it."""

import os
import sys
from collections.abc import Sequence


_ENDING_WITH_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
if hasattr(ctypes.CDLL(None), "prctl"):
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes the command behind it, which Linux ends when the process that started it is gone, however that ended."""


def ending_with_us(command: Sequence[str]) -> list[str]:
    """The command of a process that gets SIGTERM when this one is gone."""
    return [sys.executable, "-c", _ENDING_WITH_PARENT, str(os.getpid()), *command]
