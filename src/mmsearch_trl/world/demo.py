"""The main job, end to end, from nothing: `make demo`.

Builds a world, warm-starts a tiny model, trains it with `MMSearchGRPOTrainer` on real tools, evaluates before and
after, and leaves a table, a plot and a page of trajectories. The GRPO settings are those of `recipes/world/grpo.yaml`.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.engine.vllm_process import VLLMProcess
from mmsearch_trl.evaluation.report import comparison_table
from mmsearch_trl.evaluation.summary import GroupSummary
from mmsearch_trl.recipe.recipe import Recipe, load_recipe
from mmsearch_trl.recipe.run_folder import next_steps, record_run
from mmsearch_trl.traces.files import read_traces
from mmsearch_trl.traces.plot import learning_curves, plot_learning
from mmsearch_trl.traces.view import write_page
from mmsearch_trl.train import build_trainer
from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer
from mmsearch_trl.world.files import write_world
from mmsearch_trl.world.model import build_model
from mmsearch_trl.world.protocol import build_protocol
from mmsearch_trl.world.tokenizer import build_processor
from mmsearch_trl.world.warm_start import warm_start, warm_start_config
from mmsearch_trl.world.world import World


WARM_START_STEPS = 900
GROUPS = ("known", "held_out")

_WINDOW = 512
"""Tokens of a trajectory with its prompt: more than the recipe's limits let it have."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupResult:
    """Shares at temperature 1 over `n` tasks of one group; `reward` is a mean."""

    accuracy: float
    search_ratio: float
    image_ratio: float
    text_ratio: float
    format: float
    reward: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Wall time; `total` is everything but the installation."""

    install: float | None
    warm_start: float
    grpo: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSummary:
    """What `summary.json` holds and the table is made from."""

    seed: int
    engine: str
    before: Mapping[str, GroupResult]
    after: Mapping[str, GroupResult]
    seconds: Seconds


def run_demo(
    out: Path,
    *,
    seed: int,
    engine: str,
    recipe: Path,
    warm_start_steps: int,
    max_steps: int | None,
    overwrite: bool = False,
) -> DemoSummary:
    """Run every stage in the folder `out`, and print what came of it.

    Args:
        engine: What writes the rollouts: `transformers`, the trained model itself; `vllm`, a server that is started;
            `vllm-colocate`, vLLM in this process.
        recipe: GRPO settings.
        max_steps: GRPO steps; None for the recipe's.
        overwrite: Whether a demo that `out` holds may go.
    """
    if not overwrite:
        _check_unused(out)
    _be_quiet()
    load_recipe(recipe)  # a wrong one is refused now, and not after the warm start
    started = time.perf_counter()
    world = World(seed)
    write_world(world, out / "world")
    make_warm_start(world, out / "warm_start", steps=warm_start_steps)
    warm_started = time.perf_counter()
    with rollout_arguments(engine, out) as arguments:
        arguments |= {"max_steps": max_steps, "overwrite_output_dir": overwrite}
        settings = demo_recipe(recipe, out, seed=seed, **arguments)
        trainer = build_trainer(settings)
        record_run(settings, trainer.run_dir)
        try:
            before = evaluated_groups(trainer.evaluate())
            grpo_started = time.perf_counter()
            trainer.train()
            trainer.save_model()
            grpo_ended = time.perf_counter()
            after = evaluated_groups(trainer.evaluate())
            trainer.create_model_card()
        finally:
            trainer.close()
    run = trainer.run_dir
    plot = plot_learning(learning_curves(read_traces(run)), out / "learning.png")
    page = write_page(run, out / "trajectories.html")
    seconds = Seconds(
        install=_install_seconds(),
        warm_start=round(warm_started - started, 1),
        grpo=round(grpo_ended - grpo_started, 1),
        total=round(time.perf_counter() - started, 1),
    )
    summary = DemoSummary(seed=seed, engine=engine, before=results(before), after=results(after), seconds=seconds)
    (out / "summary.json").write_text(json.dumps(asdict(summary), indent=1), encoding="utf-8")
    times = f"{seconds.total:.0f} s: warm start {seconds.warm_start:.0f}, GRPO {seconds.grpo:.0f}"
    files = (f"summary: {out / 'summary.json'}", f"plot: {plot}", f"trajectories: {page}")
    Console(emoji=False).print(comparison_table(before, after))
    for line in (times, *files, *next_steps(settings, run)):
        Console(emoji=False).print(line, highlight=False, markup=False, soft_wrap=True)
    return summary


def _be_quiet() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)  # the model is tiny: two threads on two cores wait for each other longer than they work


def _check_unused(out: Path) -> None:
    """Raises: UserError."""
    if (out / "summary.json").exists() or any((out / "grpo").glob("*")):
        raise UserError(f"{out} holds a demo already: name another --out, or give --overwrite_output_dir to remove it")


@contextmanager
def rollout_arguments(engine: str, out: Path) -> Iterator[dict[str, Any]]:
    """What the recipe needs to roll out on an engine; a vLLM server runs as long as this is open."""
    flags = {"max_model_len": _WINDOW, "max_num_seqs": 128}
    if engine == "transformers":
        yield {}
    elif engine == "vllm-colocate":
        yield {
            "use_vllm": True,
            "vllm_mode": "colocate",
            "vllm_enable_sleep_mode": False,  # vLLM has none on a CPU
            "vllm_engine_args": flags | {"enforce_eager": True},
        }
    else:
        logger.info("starting a vLLM server; its log: %s", out / "vllm.log")
        with VLLMProcess(str(out / "warm_start"), out / "vllm.log", flags) as server:
            yield {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": server.url}


def make_warm_start(world: World, folder: Path, *, steps: int) -> None:
    """Draw a model, teach it perception and grammar, and save it with its processor."""
    processor = build_processor()
    model = build_model(processor, world.seed)
    warm_start(model, build_protocol(processor), world, warm_start_config(folder, steps=steps, seed=world.seed))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def make_trainer(recipe: Path, out: Path, *, seed: int, **overrides: Any) -> MMSearchGRPOTrainer:
    """The trainer of `demo_recipe`."""
    return build_trainer(demo_recipe(recipe, out, seed=seed, **overrides))


def demo_recipe(recipe: Path, out: Path, *, seed: int, **overrides: Any) -> Recipe:
    """The recipe, on the world and the warm start that lie in `out`; checked."""
    world = out / "world"
    paths: dict[str, Any] = {
        "model_name_or_path": str(out / "warm_start"),
        "train_files": [str(world / "train.jsonl")],
        "eval_files": [str(world / f"{group}.jsonl") for group in GROUPS],
        "output_dir": str(out / "grpo"),
        "search.image.path": str(world / "image_index"),
        "search.text.path": str(world / "text_index"),
        "seed": seed,
    }
    for name in ("first_turn", "after_image_search", "after_text_search", "forced_answer"):
        paths[f"{name}_prompt"] = str(world / "prompts" / f"{name}.txt")
    paths["reply_templates"] = str(world / "prompts" / "wording.yaml")
    given = {key: value for key, value in overrides.items() if value is not None}
    loaded = load_recipe(recipe, paths | given)
    loaded.validate()
    return loaded


def evaluated_groups(metrics: Mapping[str, float]) -> dict[str, GroupSummary]:
    """Known and held-out entities of an evaluation."""
    return {group: GroupSummary.from_metrics(metrics, f"eval_{group}_") for group in GROUPS}


def results(groups: Mapping[str, GroupSummary]) -> dict[str, GroupResult]:
    names = [item.name for item in fields(GroupResult)]
    return {
        group: GroupResult(**{name: getattr(summary, name) for name in names}) for group, summary in groups.items()
    }


def _install_seconds() -> float | None:
    """What `make` noted when it installed, if it did."""
    note = Path(".venv/.install_seconds")
    return float(note.read_text()) if note.exists() else None
