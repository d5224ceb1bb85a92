"""The `mmsearch` command: which subcommands there are; each lies in a file of its own.

Nothing heavy is imported before a subcommand needs it. Exit status: 0, 1 when something is wrong with the input (said
in one line), 2 when the command line itself is wrong.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence

from mmsearch_trl import __version__
from mmsearch_trl.commands.ask import add_ask
from mmsearch_trl.commands.cache import add_cache
from mmsearch_trl.commands.check import add_check
from mmsearch_trl.commands.completion import add_completion
from mmsearch_trl.commands.data import add_data
from mmsearch_trl.commands.demo import add_demo
from mmsearch_trl.commands.doctor import add_doctor
from mmsearch_trl.commands.index import add_index
from mmsearch_trl.commands.merge import add_merge
from mmsearch_trl.commands.parser import Parser, with_underscores
from mmsearch_trl.commands.recipes import add_recipes
from mmsearch_trl.commands.runs import add_eval, add_sft, add_train
from mmsearch_trl.commands.search import add_search
from mmsearch_trl.commands.serve import add_serve
from mmsearch_trl.commands.stages import add_stages
from mmsearch_trl.commands.tiny import add_tiny
from mmsearch_trl.commands.view import add_plot, add_view
from mmsearch_trl.commands.vllm import add_vllm
from mmsearch_trl.commands.world import add_world
from mmsearch_trl.core.script import finish, run_script


COMMANDS: tuple[tuple[str, Callable[[argparse.ArgumentParser], None], str], ...] = (
    ("train", add_train, "train with GRPO: --config RECIPE [--key value ...]"),
    ("sft", add_sft, "supervised cold start on demonstrations: --config RECIPE [--key value ...]"),
    (
        "stages",
        add_stages,
        "train in stages, each from what the former exported: RECIPE RECIPE ... [--STAGE.key value ...]",
    ),
    ("eval", add_eval, "evaluate a model or adapter: --config RECIPE [--model_name_or_path M] [--key value ...]"),
    ("check", add_check, "say what would go wrong with a recipe, in seconds: RECIPE [--key value ...]"),
    ("ask", add_ask, "ask a trained agent, and watch it search: QUESTION --model RUN [--image FILE]"),
    ("recipes", add_recipes, "list, show and copy the recipes that come with the package"),
    ("tiny", add_tiny, "try a recipe on a CPU: a small model, data and indexes for it, made on the spot"),
    ("search", add_search, "search once, on any backend: TEXT or --image FILE [--config RECIPE] [--key ...]"),
    ("vllm", add_vllm, "serve a model to rollouts: MODEL [--port 8000] [any flag of vllm serve]"),
    ("demo", add_demo, "build a world, train in it, show what came of it"),
    ("world", add_world, "write a world: data, indexes, demonstrations and an untrained model"),
    ("index", add_index, "build, inspect and query search indexes"),
    ("serve", add_serve, "serve an index to other processes and machines"),
    ("data", add_data, "write the data files of a published method"),
    ("cache", add_cache, "inspect cached search results, and fill the cache before a run"),
    ("merge", add_merge, "merge a LoRA adapter into its base model"),
    ("view", add_view, "write one HTML page of a run's trajectories"),
    ("plot", add_plot, "plot accuracy and search ratio of a run over its steps"),
    ("completion", add_completion, "print what a shell needs to complete commands and options"),
    ("doctor", add_doctor, "say what is installed, what is missing, and how to install it"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    action: Callable[[argparse.Namespace], None] = options.action
    status = run_script(lambda: action(options))
    if arguments is None:
        finish(status)
    if status == 128 + signal.SIGINT:
        raise KeyboardInterrupt  # the line is printed; who called from Python says what becomes of the process
    return status


def parser() -> Parser:
    """What reads the command line."""
    made = Parser(prog="mmsearch", description="Teach vision-language models to search only when they must.")
    made.add_argument("--version", action="version", version=f"mmsearch-trl {__version__}")
    made.set_defaults(takes_rest=False, whole=made)
    commands = made.add_subparsers(title="commands", metavar="COMMAND")
    for name, declare, text in COMMANDS:
        declare(commands.add_parser(name, help=text, description=text))
    return made


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; `action` carries it out.

    `rest` is what a command takes beside its own options: keys of a recipe (`recipe/command_line.py`), flags of vLLM.
    """
    words = list(arguments)
    reader = parser()
    options, rest = reader.parse_known_args(words if words[:1] == ["vllm"] else with_underscores(words))
    if not hasattr(options, "action"):
        reader.print_help()
        reader.exit(2 if arguments else 0)
    if rest and not options.takes_rest:
        reader.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    return options


if __name__ == "__main__":
    sys.exit(main())
