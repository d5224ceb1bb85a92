"""`mmsearch doctor --recipe`: what a recipe takes of each GPU's memory, from shapes alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.models.location import find_model
from mmsearch_trl.models.published import published_config
from mmsearch_trl.recipe.memory import Demand, Memory, Sharding, memory_of
from mmsearch_trl.recipe.model_shape import ModelShape, model_shape
from mmsearch_trl.recipe.recipe import Recipe, load_recipe
from mmsearch_trl.recipe.written import ON_A_CPU, Kind, read_written
from mmsearch_trl.trainer.config import MMSearchGRPOConfig


_ROWS = (
    ("weights", "weights"),
    ("gradients", "gradients"),
    ("optimizer", "optimizer"),
    ("reference model", "reference"),
    ("critic", "critic"),
    ("model and optimizer", "states"),
    ("activations", "activations"),
    ("of the vision tower", "vision"),
    ("training, in all", "training"),
    ("gathered weights", "gathered"),
    ("key-value cache", "cache"),
    ("rollouts, in all", "rollout"),
    ("optimizer, on the CPU", "host"),
)
_SUMS = ("states", "training", "rollout")


def report_memory(path: Path, overrides: Mapping[str, Any], kind: Kind, gpus: int) -> None:
    """Print it.

    Raises:
        UserError: the recipe has a mistake, or its model's shape is not known here.
    """
    if gpus < 1:
        raise UserError(f"--gpus: {gpus} is no number of GPUs")
    values = read_written(path, overrides, kind=kind).values
    # Without a GPU a recipe for one is refused; what it takes of one can be told all the same.
    recipe = load_recipe(path, {**overrides, **ON_A_CPU}, kind=kind)
    name = str(recipe.model.model_name_or_path)
    if published_config(name) is None or Path(name).is_dir():
        find_model("model_name_or_path", name, revision=recipe.model.model_revision, weights=False)
    args = recipe.trainer
    shape = model_shape(
        recipe.model,
        freeze_vision=args.freeze_vision,
        freeze_prefix=args.freeze_prefix,
        written=list(recipe.values),
        published=True,
    )
    demand = Demand.of(recipe, bf16=bool(values.get("bf16", kind == "grpo")))
    console = Console(width=None, soft_wrap=True, emoji=False)
    console.print(
        f"{path}: {name}, {shape.parameters / 1e9:.2f} billion parameters, {shape.trained.count / 1e9:.2f} trained",
        highlight=False,
        markup=False,
    )
    ways = [sharding for sharding in Sharding if demand.critic is None or not sharding.of_deepspeed]
    memories = {sharding: memory_of(shape, demand, sharding, gpus) for sharding in ways}
    console.print(_table(memories, gpus))
    for line in _notes(recipe, shape, demand):
        console.print(line, highlight=False, markup=False)


def _table(memories: Mapping[Sharding, Memory], gpus: int) -> Table:
    title = f"GiB of each of {gpus} GPUs, computed and not measured"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for sharding in memories:
        table.add_column(sharding.value, justify="right")
    for label, key in _ROWS:
        numbers = [getattr(memory, key) for memory in memories.values()]
        if any(numbers):
            cells = [Text(f"{number:.1f}" if number else "-") for number in numbers]
            table.add_row(Text(label), *cells, style="bold" if key in _SUMS else "")
    return table


def _notes(recipe: Recipe, shape: ModelShape, demand: Demand) -> Sequence[str]:
    """What the numbers are of, and what they leave out."""
    args, notes = recipe.trainer, []
    if demand.tokens is None:
        notes.append("not counted: activations, for the recipe bounds no row's length (max_length)")
    else:
        unbounded = isinstance(args, MMSearchGRPOConfig) and recipe.data.max_prompt_length is None
        prompt = " behind prompts that it does not bound (max_prompt_length)" if unbounded else ""
        notes.append(
            f"activations: {demand.rows} rows of {demand.tokens:,} tokens, the longest that the recipe allows{prompt}"
        )
    if shape.vision is not None and demand.pixels is None:
        megapixel = demand.compute_bytes * shape.vision.depth * shape.vision.width * (10**6 // shape.vision.patch**2)
        notes.append(
            f"not counted: the vision tower's activations, {megapixel / 2**30:.2f} GiB for each megapixel of the "
            "pictures of a micro-batch"
        )
    if isinstance(args, MMSearchGRPOConfig) and args.use_vllm:
        share = f"{args.vllm_gpu_memory_utilization:.0%} of each GPU"
        sleeps = ", given back while it trains (sleep mode)" if args.vllm_enable_sleep_mode else " all the time"
        notes.append(
            f"not counted: vLLM, {share}{sleeps}"
            if args.vllm_mode == "colocate"
            else "not counted: vLLM, which has GPUs of its own (vllm_mode: server)"
        )
    notes.append("leave a tenth for fragmentation and buffers; docs/hardware.md has the arithmetic")
    return notes
