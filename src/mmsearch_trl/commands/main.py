"""The `mmsearch` command.

Nothing heavy is imported before a subcommand needs it. Exit status: 0, 1 when something is wrong with the input (said
in one line), 2 when the command line itself is wrong.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mmsearch_trl import __version__
from mmsearch_trl.commands.demo import add_demo
from mmsearch_trl.commands.index import add_index, add_serve
from mmsearch_trl.core.boundaries import writing
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.script import run_script
from mmsearch_trl.core.versions import check_versions
from mmsearch_trl.recipe.command_line import add_config, keys_of, recipe_of


WORLD_DEMONSTRATIONS = 6000
FLASHRAG = "RUC-NLPIR/FlashRAG_datasets"
"""The data set on the Hub from which Search-R1 takes its questions."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    action: Callable[[argparse.Namespace], None] = options.action
    return run_script(lambda: action(options))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; `action` carries it out.

    `rest` is what a command takes beside its own options: keys of a recipe (`recipe/command_line.py`), flags of vLLM.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if not hasattr(options, "action"):
        parser.print_help()
        parser.exit(2 if arguments else 0)
    if rest and not options.takes_rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmsearch", description="Teach vision-language models to search only when they must.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"mmsearch-trl {__version__}")
    parser.set_defaults(takes_rest=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(
        name: str, text: str, action: Callable[[argparse.Namespace], None] | None = None
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if action is not None:
            command.set_defaults(action=action)
        return command

    for name, text, action in (
        ("train", "train with GRPO: --config RECIPE [--key value ...]", _train),
        ("sft", "supervised cold start on demonstrations: --config RECIPE [--key value ...]", _sft),
        ("eval", "evaluate a model or adapter: --config RECIPE [--model_name_or_path M] [--key value ...]", _eval),
    ):
        add_config(add(name, text, action))
    search = add("search", "search once, on any backend: TEXT or --image FILE [--config RECIPE] [--key ...]", _search)
    search.usage = "mmsearch search (TEXT | --image FILE) [--config RECIPE] [--text.backend bm25 --text.path DIR ...]"
    search.add_argument("--image", type=Path, metavar="FILE", help="look this image up instead of searching TEXT")
    add_config(search, "take the `search:` section of this recipe")
    vllm = add("vllm", "serve a model to rollouts: MODEL [--port 8000] [any flag of vllm serve]", _vllm)
    vllm.add_argument("model", metavar="MODEL", help="name or folder of the model that will be trained")
    vllm.add_argument("--port", type=int, default=8000)
    vllm.add_argument("--max_lora_rank", type=int, metavar="R", help="take LoRA adapters of up to this rank")
    vllm.set_defaults(takes_rest=True)
    add_demo(add("demo", "build a world, train in it, show what came of it"))
    world = add("world", "write a world: data, indexes, demonstrations and an untrained model", _world)
    world.add_argument("--seed", type=int, default=0)
    world.add_argument("--out", type=Path, required=True, metavar="DIR")
    world.add_argument("--demonstrations", type=int, default=WORLD_DEMONSTRATIONS, metavar="N")
    add_index(add("index", "build, inspect and query search indexes"))
    add_serve(add("serve", "serve an index to other processes and machines"))
    _add_data(add("data", "write the data files of a published method"))
    _add_cache(add("cache", "inspect cached search results, and fill the cache before a run"))
    merge = add("merge", "merge a LoRA adapter into its base model", _merge)
    merge.add_argument("adapter", help="folder or Hub name of the adapter")
    merge.add_argument("--out", type=Path, required=True, metavar="DIR")
    view = add("view", "write one HTML page of a run's trajectories", _view)
    view.add_argument("run", type=Path, metavar="RUN", help="folder that holds traces/")
    view.add_argument("--out", type=Path, metavar="FILE")
    plot = add("plot", "plot accuracy and search ratio of a run over its steps", _plot)
    plot.add_argument("run", type=Path, metavar="RUN")
    plot.add_argument("--out", type=Path, metavar="FILE")
    add("doctor", "say what is installed, what is missing, and how to install it", _doctor)
    return parser


def _add_data(data: argparse.ArgumentParser) -> None:
    sets = data.add_subparsers(title="data", metavar="search-r1", required=True)
    search_r1 = sets.add_parser("search-r1", help="training data of Search-R1 (NQ, HotpotQA) and its seven test sets")
    search_r1.add_argument("out", type=Path, metavar="FOLDER")
    search_r1.add_argument(
        "--source", default=FLASHRAG, help="data set on the Hub, or a folder with its files (default: %(default)s)"
    )
    search_r1.set_defaults(action=_data_search_r1)


def _add_cache(cache: argparse.ArgumentParser) -> None:
    actions = cache.add_subparsers(title="actions", metavar="stats|verify|export|import|prefetch", required=True)
    stats = actions.add_parser("stats", help="what a file holds")
    verify = actions.add_parser("verify", help="read every answer; exit status 1 where one is damaged")
    verify.add_argument("--drop", action="store_true", help="remove the damaged ones")
    export = actions.add_parser("export", help="write all answers into one new file, and tell its SHA-256")
    add = actions.add_parser("import", help="add the answers of other files")
    text = "look up every image of a recipe, or texts: --config RECIPE [--queries FILE|questions] [--key value ...]"
    prefetch = actions.add_parser("prefetch", help=text, description=text, allow_abbrev=False)
    add_config(prefetch)
    prefetch.add_argument("--queries", metavar="FILE", help="texts to search for; `questions`: those of the data")
    prefetch.set_defaults(action=_cache_prefetch)
    for action, run in ((stats, _cache_stats), (verify, _cache_verify), (export, _cache_export), (add, _cache_import)):
        action.add_argument("file", type=Path, metavar="FILE", help="a `search.cache`")
        action.set_defaults(action=run)
    export.add_argument("out", type=Path, metavar="OUT")
    add.add_argument("others", type=Path, metavar="OTHER", nargs="+")


def _train(options: argparse.Namespace) -> None:
    check_versions()  # before TRL is touched: a version out of range may not even import
    from mmsearch_trl.train import main

    main(*recipe_of(options, options.rest))


def _sft(options: argparse.Namespace) -> None:
    check_versions()
    from mmsearch_trl.sft import main

    main(*recipe_of(options, options.rest))


def _eval(options: argparse.Namespace) -> None:
    check_versions()
    from mmsearch_trl.evaluate import main

    main(*recipe_of(options, options.rest))


def _search(options: argparse.Namespace) -> None:
    check_versions()
    from mmsearch_trl.commands.search import search, search_config

    # TEXT is no option of the parser: of two words behind a key, `argparse` could not tell which is the text.
    first_key = next((place for place, word in enumerate(options.rest) if word.startswith("--")), len(options.rest))
    texts, keys = options.rest[:first_key], keys_of(options.rest[first_key:])
    if len(texts) + (options.image is not None) != 1:
        raise UserError("give a text to search for, or --image FILE to look an image up; keys come behind it")
    search(search_config(options.config, keys), texts[0] if texts else options.image)


def _vllm(options: argparse.Namespace) -> None:
    check_versions()
    from mmsearch_trl.engine.vllm_process import become_server

    become_server(options.model, options.rest, port=options.port, max_lora_rank=options.max_lora_rank)


def _world(options: argparse.Namespace) -> None:
    check_versions()
    from mmsearch_trl.world.demonstrations import write_demonstrations
    from mmsearch_trl.world.files import write_world
    from mmsearch_trl.world.model import build_model
    from mmsearch_trl.world.protocol import build_protocol
    from mmsearch_trl.world.tokenizer import build_processor
    from mmsearch_trl.world.world import World

    world, processor = World(options.seed), build_processor()
    folder, model = options.out / "world", options.out / "model"
    with writing(options.out):
        write_world(world, folder, progress=True)
        write_demonstrations(world, build_protocol(processor), folder, options.demonstrations, progress=True)
        build_model(processor, options.seed).save_pretrained(model)
        processor.save_pretrained(model)
    print(f"world: {folder}\nuntrained model: {model}")


def _data_search_r1(options: argparse.Namespace) -> None:
    from mmsearch_trl.data.search_r1_sets import write_search_r1_sets

    for name, count in write_search_r1_sets(options.out, options.source).items():
        print(f"{options.out / name}: {count} rows")


def _cache_stats(options: argparse.Namespace) -> None:
    from rich.console import Console

    from mmsearch_trl.commands.cache import stats

    Console().print(stats(options.file))


def _cache_verify(options: argparse.Namespace) -> None:
    from mmsearch_trl.commands.cache import verify

    damaged = verify(options.file, drop=options.drop)
    if damaged and not options.drop:
        raise UserError(f"{len(damaged)} answers of {options.file} are damaged: remove them with --drop")
    print(
        f"{options.file}: {len(damaged)} damaged answers were removed" if damaged else f"{options.file}: all is well"
    )


def _cache_export(options: argparse.Namespace) -> None:
    from mmsearch_trl.commands.cache import export

    print(f"{options.out}: sha256 {export(options.file, options.out)}")


def _cache_import(options: argparse.Namespace) -> None:
    from mmsearch_trl.commands.cache import add

    print(f"{options.file}: {add(options.file, options.others)} answers added")


def _cache_prefetch(options: argparse.Namespace) -> None:
    check_versions()
    from mmsearch_trl.commands.prefetch import prefetch
    from mmsearch_trl.recipe.recipe import load_recipe
    from mmsearch_trl.search.calls.totals import summary_lines

    outcomes, totals = prefetch(load_recipe(*recipe_of(options, options.rest)), options.queries)
    print(", ".join(f"{count} {name}" for name, count in sorted(outcomes.items())) or "nothing to look up was found")
    for line in summary_lines(totals):
        print(line)


def _merge(options: argparse.Namespace) -> None:
    check_versions()
    from mmsearch_trl.recipe.build import merge_adapter

    merge_adapter(options.adapter, options.out)
    print(f"merged model: {options.out}")


def _view(options: argparse.Namespace) -> None:
    from mmsearch_trl.traces.view import write_page

    print(write_page(options.run, options.out))


def _plot(options: argparse.Namespace) -> None:
    from mmsearch_trl.traces.files import read_traces
    from mmsearch_trl.traces.plot import learning_curves, plot_learning

    print(plot_learning(learning_curves(read_traces(options.run)), options.out or options.run / "learning.png"))


def _doctor(options: argparse.Namespace) -> None:
    from mmsearch_trl.commands.doctor import examine, report

    logging.disable(logging.WARNING)  # libraries that find no GPU say so in their own words
    report(examine())


if __name__ == "__main__":
    sys.exit(main())
