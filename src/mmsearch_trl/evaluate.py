"""Evaluate a model: `accelerate launch -m mmsearch_trl.evaluate --config RECIPE [--model_name_or_path MODEL] [...]`.

Takes the recipe that the model was trained with; the training data are not looked at. Decoding is greedy unless
`eval_temperature` says otherwise. MODEL may be a LoRA adapter. It is sampled as the recipe says, by transformers or
vLLM, in any number of processes, and what each row comes to depends on neither: it is what `trainer.evaluate()` gives.
All data are read once before the model is loaded, so that a bad row does not end the work half-way. The same command
goes on with an evaluation that was interrupted. What it leaves:

    <output_dir>/evaluation/<data>_<rows>.json     every row, in MMSearch-R1's fields and ours
    <output_dir>/evaluation/summary.json           means with intervals, by data source, category and search
    <output_dir>/evaluation/traces/                the trajectories: `mmsearch view <output_dir>/evaluation`
"""

import json
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from rich.console import Console
from transformers import set_seed

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.boundaries import reading, writing
from mmsearch_trl.core.errors import EngineLost, SearchLost, UserError
from mmsearch_trl.core.interrupts import described
from mmsearch_trl.core.script import finish, run_script
from mmsearch_trl.data.config import TRAINING_KEYS
from mmsearch_trl.data.dataset import row_to_task
from mmsearch_trl.data.sources import data_name
from mmsearch_trl.distributed.policy import Policy
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.evaluation.evaluator import Evaluation, Evaluator, Row
from mmsearch_trl.evaluation.report import summary_table
from mmsearch_trl.evaluation.summary import EvaluationSummary, GroupSummary
from mmsearch_trl.recipe.build import build_protocol, build_tools, end_ids, load_agent, load_processor
from mmsearch_trl.recipe.command_line import recipe_arguments
from mmsearch_trl.recipe.data import load_rows
from mmsearch_trl.recipe.preflight import Preflight
from mmsearch_trl.recipe.recipe import Recipe, load_recipe
from mmsearch_trl.recipe.rewards import build_rewards
from mmsearch_trl.rollout.rollouter import Rollouter
from mmsearch_trl.search.calls.totals import SearchTotals, summary_lines
from mmsearch_trl.trainer.checks import check_pictures
from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.trainer.rewards import RewardFunctions
from mmsearch_trl.trainer.sampler.build import build_sampler
from mmsearch_trl.trainer.sampler.sampler import Sampler
from mmsearch_trl.trainer.search_calls import gather_totals


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """What `summary.json` holds.

    Attributes:
        seconds: Without loading.
        data: By the name of the data file.
        searches: What the searches of all files and processes came to, by tool; None where there was nothing to search
            with.
    """

    model: str
    recipe: str
    temperature: float
    seed: int
    seconds: float
    data: Mapping[str, EvaluationSummary]
    searches: Mapping[ActionKind, SearchTotals] | None

    def to_json(self) -> str:
        """What was not there to be measured is left out."""
        return json.dumps(asdict(self, dict_factory=lambda pairs: {k: v for k, v in pairs if v is not None}), indent=1)


def main(config: Path, overrides: Mapping[str, Any]) -> None:
    """Evaluate by a recipe and print what came of it; `overrides` replace its values, by dotted key."""
    recipe = load_recipe(config, overrides)
    recipe.validate(evaluation=True)
    Preflight(recipe, evaluation=True).require()
    with described(lambda: "the same command goes on with what is evaluated"):
        report = evaluate(recipe)
    if not PartialState().is_main_process:
        return
    console = Console(emoji=False)
    for name, summary in report.data.items():
        console.print(summary_table(_groups(summary), title=name))
    for line in summary_lines(report.searches) if report.searches is not None else ():
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"rows and summary: {_folder(recipe)}", highlight=False, markup=False, soft_wrap=True)
    if getattr(recipe.trainer, "save_traces", False):
        view = f"to read what it did: mmsearch view {shlex.quote(str(_folder(recipe)))}"
        console.print(view, highlight=False, markup=False, soft_wrap=True)


def evaluate(recipe: Recipe) -> EvaluationReport:
    """Carry out the evaluation of a recipe that was validated; every process must call it.

    Raises:
        UserError: a data file, or a row of it, cannot be used; or it was launched with sharded weights.
        EngineError: rollouts cannot be written, or vLLM cannot serve.
        SearchLost: searches are not answered.
    """
    args = recipe.trainer
    assert isinstance(args, MMSearchGRPOConfig)
    accelerator, ranks = Accelerator(), Ranks()
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP):
        raise UserError(
            "evaluation holds the whole model in every process: launch it with accelerate_configs/ddp.yaml, and let "
            "vLLM hold a model that is too large for that"
        )
    ranks.on_main(partial(_clear, recipe, overwrite=args.overwrite_output_dir))
    set_seed(args.seed)
    rewards = build_rewards(recipe)
    protocol = build_protocol(recipe, load_processor(recipe.model))
    search = build_tools(recipe, protocol)
    data = {data_name(file): load_rows(recipe, [file], protocol, rewards.rule) for file in recipe.data.eval_files}
    policy = Policy(accelerator, _load(recipe, args), 0)
    rollouter = Rollouter(protocol, search, recipe.rollout)
    sampler = build_sampler(
        args.sampler_options(), policy, protocol.chat, end_ids(policy.model, protocol.chat), ranks, rollouter.loop
    )
    if sampler.max_model_len is not None:
        rollouter.limits = rollouter.limits.within(sampler.max_model_len)
    for rows in data.values():
        check_pictures(rows, rollouter.limits, search, sampler.max_images)
    models = [each.to(args.device) if isinstance(each, torch.nn.Module) else each for each in rewards.functions]
    scoring = RewardFunctions(models, rewards.tokenizers, rewards.weights, {}, rollouter.loop, protocol.chat.spelled)
    started = time.perf_counter()
    try:
        summaries = _evaluate_all(recipe, data, rollouter, scoring, sampler, policy, ranks)
    finally:
        scoring.close()
        sampler.close()
        rollouter.close()
        if search is not None:
            search.close()
    report = EvaluationReport(
        model=str(recipe.model.model_name_or_path),
        recipe=str(recipe.path),
        temperature=args.eval_temperature,
        seed=args.seed,
        seconds=round(time.perf_counter() - started, 1),
        data=summaries,
        searches=None if search is None else gather_totals(search.totals, ranks),
    )
    if ranks.is_main:
        with writing(_folder(recipe)):
            (_folder(recipe) / "summary.json").write_text(report.to_json(), encoding="utf-8")
    return report


def _clear(recipe: Recipe, *, overwrite: bool) -> None:
    """Let the folder hold the evaluation of one model alone: rows of others would be read as this one's.

    Raises:
        UserError: it holds another's, which may not go.
    """
    folder, model = _folder(recipe), str(recipe.model.model_name_or_path)
    if not (folder / "summary.json").is_file():
        return
    with reading(folder / "summary.json"):
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    if summary.get("model") == model:
        return
    if not overwrite:
        raise UserError(
            f"{folder} holds an evaluation of {summary.get('model')}: name another output_dir for {model}, or give "
            "--overwrite_output_dir to remove it"
        )
    with writing(folder):
        for name, evaluated in summary.get("data", {}).items():
            (folder / f"{name}_{evaluated['overall']['n']}.json").unlink(missing_ok=True)
        shutil.rmtree(folder / "traces", ignore_errors=True)
        (folder / "summary.json").unlink()


def _load(recipe: Recipe, args: MMSearchGRPOConfig) -> Any:
    """The model in this process; vLLM beside it needs the device for itself, and takes weights from main memory."""
    model = load_agent(recipe.model).eval()
    colocated = args.use_vllm and args.vllm_mode == "colocate"
    return model if colocated else model.to(args.device)  # pyright: ignore[reportArgumentType]


def _evaluate_all(
    recipe: Recipe,
    data: Mapping[str, Dataset],
    rollouter: Rollouter,
    scoring: RewardFunctions,
    sampler: Sampler,
    policy: Policy,
    ranks: Ranks,
) -> dict[str, EvaluationSummary]:
    """Evaluate every data file with the one engine."""
    args = recipe.trainer
    assert isinstance(args, MMSearchGRPOConfig)
    options = args.evaluation_options(_folder(recipe), progress=not args.disable_tqdm)
    evaluator = Evaluator(rollouter, scoring.scorer(None), ranks, options)
    settings = {key: recipe.values.get(key) for key in ("search", "reward", "tools")}
    settings |= {"data": asdict(recipe.data) | dict.fromkeys(TRAINING_KEYS)}
    to_task = partial(row_to_task, resize=recipe.data.resize_images)
    weights, summaries = policy.fingerprint(), {}
    with sampler.open(policy) as opened:
        for name, rows in data.items():
            evaluation = Evaluation(
                name=f"eval_{name}",  # as the trainer has it, so that the same trajectories are sampled
                split=name,
                step=0,
                weights=weights,
                settings=settings,
                rows_file=_folder(recipe) / f"{name}_{len(rows)}.json",
            )
            try:
                summaries[name] = evaluator.run(evaluation, cast("Sequence[Row]", rows), to_task, opened.engine)
            except (EngineLost, SearchLost) as error:
                raise type(error)(f"{name}: {error}") from error
    return summaries


def _folder(recipe: Recipe) -> Path:
    return Path(str(recipe.trainer.output_dir)) / "evaluation"


def _groups(summary: EvaluationSummary) -> dict[str, GroupSummary]:
    """The lines of the table; a division into a single group would only repeat the first."""
    groups = {"all": summary.overall}
    for part in (summary.by_source, summary.by_category, summary.by_search or {}):
        groups |= part if len(part) > 1 else {}
    return groups


if __name__ == "__main__":
    status = run_script(lambda: main(*recipe_arguments()))
    if status == 0:
        Ranks().leave()
    finish(status)
