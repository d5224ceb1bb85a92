"""`mmsearch completion`: what a shell needs to complete commands and options."""

import argparse


SHELLS = ("bash", "zsh", "tcsh")


def add_completion(completion: argparse.ArgumentParser) -> None:
    """Declare the options."""
    completion.epilog = 'For this shell alone: eval "$(mmsearch completion bash)"; for all, write that into ~/.bashrc.'
    completion.add_argument("shell", choices=SHELLS, help="whose script is printed")
    completion.set_defaults(action=_completion)


def _completion(options: argparse.Namespace) -> None:
    import shtab

    print(shtab.complete(options.whole, options.shell))
