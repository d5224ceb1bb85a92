"""Train a search agent with GRPO: `accelerate launch -m mmsearch_trl.train --config RECIPE [--key value ...]`.

Reads top-down: the recipe is read and checked before anything is loaded; then data, model, tools and trainer are
built; then it trains, saves, evaluates and, where the recipe says so, pushes to the Hub.
"""

import logging
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from transformers import set_seed

from mmsearch_trl.core.errors import EngineLost, RewardError, SearchLost
from mmsearch_trl.core.interrupts import described
from mmsearch_trl.core.script import finish, run_script
from mmsearch_trl.data.sources import data_name
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.evaluation.report import summary_table
from mmsearch_trl.evaluation.summary import GroupSummary
from mmsearch_trl.hub.push import check_login, pushing
from mmsearch_trl.recipe.build import build_protocol, build_tools, keep_token_out_of_files, load_processor
from mmsearch_trl.recipe.command_line import recipe_arguments
from mmsearch_trl.recipe.data import load_rows, load_training_rows
from mmsearch_trl.recipe.preflight import Preflight
from mmsearch_trl.recipe.recipe import Recipe, load_recipe
from mmsearch_trl.recipe.rewards import build_rewards
from mmsearch_trl.recipe.run_folder import next_steps, record_run
from mmsearch_trl.recipe.schedule import Batches
from mmsearch_trl.recipe.start import load_start, new_adapter
from mmsearch_trl.rollout.loop import Tools
from mmsearch_trl.search.calls.totals import summary_lines
from mmsearch_trl.search.runtime import SearchRuntime
from mmsearch_trl.trainer.checkpoint_folder import what_is_saved
from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer
from mmsearch_trl.trainer.search_calls import gather_totals


logger = logging.getLogger(__name__)


def main(config: Path, overrides: Mapping[str, Any]) -> None:
    """Carry out a recipe; `overrides` replace its values, by dotted key."""
    recipe = load_recipe(config, overrides)
    recipe.validate()
    Preflight(recipe).require()
    train(recipe)


def train(recipe: Recipe) -> MMSearchGRPOTrainer:
    """Carry out a recipe that was validated."""
    out = Path(str(recipe.trainer.output_dir))
    with described(partial(what_is_saved, out)), closing(build_trainer(recipe)) as trainer:
        args = trainer.args
        if PartialState().is_main_process:
            record_run(recipe, out)
        try:
            with trainer.preemption.on_sigterm():
                trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        except (EngineLost, SearchLost, RewardError) as error:
            print_searches(trainer.rollouter.tools, trainer.ranks)
            raise type(error)(f"training ended early: {error} ({what_is_saved(out)})") from error
        # An internal call, for any other would push at once and everything would travel twice.
        trainer.save_model(args.output_dir, _internal_call=True)
        trainer.save_state()
        if (lost := trainer.collector.outage.lost_at_end()) is not None:
            print_searches(trainer.rollouter.tools, trainer.ranks)
            raise type(lost)(f"training came to its end and is saved in {out}, but {lost}")
        if trainer.eval_dataset is not None:
            metrics = trainer.last_evaluation() or trainer.evaluate()
            if PartialState().is_main_process:
                names = [data_name(file) for file in recipe.data.eval_files]
                Console(emoji=False).print(
                    summary_table({n: GroupSummary.from_metrics(metrics, f"eval_{n}_") for n in names})
                )
        print_searches(trainer.rollouter.tools, trainer.ranks)
        if args.push_to_hub:
            with pushing(str(out)):
                trainer.push_to_hub()
        else:
            trainer.create_model_card()
    if PartialState().is_main_process:
        for line in next_steps(recipe, out):
            Console(emoji=False).print(line, highlight=False, markup=False, soft_wrap=True)
    return trainer


def build_trainer(recipe: Recipe) -> MMSearchGRPOTrainer:
    """Load everything that a recipe names and put the trainer together."""
    args, out = recipe.trainer, Path(str(recipe.trainer.output_dir))
    assert isinstance(args, MMSearchGRPOConfig)
    set_seed(args.seed)
    keep_token_out_of_files(args)
    check_login(args)
    rewards = build_rewards(recipe)
    processor = load_processor(recipe.model)
    protocol = build_protocol(recipe, processor)
    search = build_tools(recipe, protocol)
    train_dataset = load_training_rows(recipe, protocol, rewards.rule)
    Batches.of(args, len(train_dataset))  # refuses too few
    eval_files = recipe.data.eval_files
    eval_datasets = {data_name(file): load_rows(recipe, [file], protocol, rewards.rule) for file in eval_files}
    return MMSearchGRPOTrainer(
        load_start(recipe.model, out),
        rewards.functions,
        args,
        search=search,
        limits=recipe.rollout,
        protocol=protocol,
        resize_images=recipe.data.resize_images,
        train_dataset=train_dataset,
        eval_dataset=eval_datasets or None,
        processing_class=processor,
        reward_processing_classes=rewards.tokenizers,
        peft_config=new_adapter(recipe.model),
    )


def print_searches(search: Tools | None, ranks: Ranks) -> None:
    """Print what the searches of all ranks came to since the run was started or resumed; every rank must call it."""
    if not isinstance(search, SearchRuntime):  # there are none, or tools of another kind, which count nothing
        return
    totals = gather_totals(search.totals, ranks)
    if ranks.is_main:
        for line in summary_lines(totals):
            Console(emoji=False).print(line, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    status = run_script(lambda: main(*recipe_arguments()))
    if status == 0:
        Ranks().leave()
    finish(status)
