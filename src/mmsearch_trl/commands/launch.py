"""What `accelerate launch` does, from the command itself: one process for each GPU."""

import argparse
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.recipe.shipped import find_accelerate_config


DEFAULT = "ddp"


def add_launch(command: argparse.ArgumentParser) -> None:
    """Declare how many processes there are, and how they share the work."""
    command.add_argument(
        "--num_processes", type=int, metavar="N", help="processes; default: one for each GPU that can be seen"
    )
    command.add_argument(
        "--accelerate", metavar="C", help=f"ddp, zero2, zero3, fsdp2, or a file of `accelerate config`; {DEFAULT}"
    )


def launch(module: str, options: argparse.Namespace, words: Sequence[str]) -> bool:
    """Run a module in processes of `accelerate`; False where this process is to do it, as one of several or alone.

    Raises:
        UserError: there is no such configuration, or no process is asked for.
        SystemExit: a process failed; it has said why, or a signal ended it and this says so.
    """
    if "WORLD_SIZE" in os.environ:
        return False
    if options.num_processes is not None and options.num_processes < 1:
        raise UserError(f"--num_processes: {options.num_processes} is no number of processes")
    processes, own = options.num_processes, options.accelerate is not None and Path(options.accelerate).is_file()
    if processes is None and not own:
        import torch

        processes = max(1, torch.cuda.device_count())
    if processes == 1 and options.accelerate is None:
        return False
    arguments = ["--config_file", str(find_accelerate_config(options.accelerate or DEFAULT))]
    arguments += [] if processes is None else ["--num_processes", str(processes)]
    # Of a configuration that is shipped: one machine, whose port is whichever is free.
    arguments += [] if own else ["--main_process_port", "0"]
    arguments += ["--mixed_precision", "no"]  # the recipe's bf16 key decides
    _launch([*arguments, "-m", module, *words])
    return True


def _launch(arguments: Sequence[str]) -> None:
    from subprocess import CalledProcessError

    import torch.distributed.run  # noqa: F401  (all of whose loggers are to be there)
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # The processes say what is wrong; the launcher would add its own screen about that.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        launch_command(launch_command_parser().parse_args(list(arguments)))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        status = failure.exitcode
        ended = f"mmsearch: error: process {rank} was ended by {signal.Signals(-status).name}" if status < 0 else None
        raise SystemExit(ended or status) from None
    except SignalException as error:  # handed on to the processes, the first of which says what is saved
        raise SystemExit(128 + error.sigval) from None
    except CalledProcessError as error:
        raise SystemExit(error.returncode) from None
