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
_MACHINE_OPTIONS = ("num_machines", "machine_rank", "main_process_ip", "main_process_port")


def add_launch(command: argparse.ArgumentParser) -> None:
    """Declare how many processes there are, and how they share the work."""
    command.add_argument(
        "--num_processes", type=int, metavar="N", help="processes; default: one for each GPU that can be seen"
    )
    command.add_argument(
        "--accelerate",
        metavar="C",
        help=f"ddp, zero2, zero3, fsdp2, multi_node, or a file of `accelerate config`; {DEFAULT}",
    )
    nodes = command.add_argument_group("several machines, on each of which the command is given")
    nodes.add_argument("--num_machines", type=int, metavar="N", help="how many; --num_processes is of all of them")
    nodes.add_argument("--machine_rank", type=int, metavar="R", help="which this one is, from 0")
    nodes.add_argument("--main_process_ip", metavar="HOST", help="of the first")
    nodes.add_argument("--main_process_port", type=int, metavar="PORT", help="one that is free there")


def launch(module: str, options: argparse.Namespace, words: Sequence[str]) -> bool:
    """Run a module in processes of `accelerate`; False where this process is to do it, as one of several or alone.

    Raises:
        UserError: there is no such configuration, no process is asked for, or a machine does not know its part.
        SystemExit: a process failed; it has said why, or a signal ended it and this says so.
    """
    if "WORLD_SIZE" in os.environ:
        return False
    if options.num_processes is not None and options.num_processes < 1:
        raise UserError(f"--num_processes: {options.num_processes} is no number of processes")
    machines = _machines(options)
    processes, own = options.num_processes, options.accelerate is not None and Path(options.accelerate).is_file()
    if processes is None and not own:
        import torch

        processes = max(1, torch.cuda.device_count())
    if processes == 1 and options.accelerate is None and not machines:
        return False
    arguments = ["--config_file", str(find_accelerate_config(options.accelerate or DEFAULT))]
    arguments += [] if processes is None else ["--num_processes", str(processes)]
    # Of a configuration that is shipped: one machine, whose port is whichever is free.
    arguments += machines or ([] if own else ["--main_process_port", "0"])
    arguments += ["--mixed_precision", "no"]  # the recipe's bf16 key decides
    _launch([*arguments, "-m", module, *words])
    return True


def _machines(options: argparse.Namespace) -> list[str]:
    """Arguments of `accelerate launch` about several machines.

    Raises:
        UserError: they are not all given, or a number cannot be.
    """
    given = {name: getattr(options, name) for name in _MACHINE_OPTIONS if getattr(options, name) is not None}
    if not given:
        if options.accelerate == "multi_node":
            raise UserError(f"--accelerate multi_node needs {', '.join(f'--{name}' for name in _MACHINE_OPTIONS)}")
        return []
    missing = [f"--{name}" for name in (*_MACHINE_OPTIONS, "num_processes") if getattr(options, name) is None]
    if missing:
        raise UserError(f"several machines need {', '.join(missing)}, too")
    machines, rank = options.num_machines, options.machine_rank
    if machines < 1 or not 0 <= rank < machines:
        raise UserError(f"--machine_rank: {rank} is none of {machines} machines, which are counted from 0")
    if options.num_processes % machines:
        raise UserError(f"--num_processes: {options.num_processes} are not the same on each of {machines} machines")
    if not 0 < options.main_process_port < 65536:
        raise UserError(
            f"--main_process_port: {options.main_process_port} is no port; name one that is free, above 1023"
        )
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


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
