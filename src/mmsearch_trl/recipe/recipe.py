"""A recipe: one YAML file that says everything about a training run.

Its flat keys are those of `RecipeModelConfig` (model), `DataConfig` (data) and `MMSearchGRPOConfig` (trainer), or of
`MMSearchSFTConfig` in a supervised recipe. The mappings `search:`, `rollout:`, `reward:`, `estimator:` and `critic:`
hold the keys of `SearchConfig`, `Limits`, `RewardConfig`, or what stands for it under another protocol,
`EstimatorConfig` and `CriticConfig`; the list `tools:` names what may be called besides the searches
(`recipe/tools.py`). Any key can be overridden on the command line, nested ones with a dot:

    --config mmsearch_r1/qwen2.5-vl-7b --learning_rate 1e-6 --rollout.max_turns 2

`extends: other.yaml` takes everything from another recipe and changes what it names (`layers.py`).

A recipe with a mistake is refused before any work is done.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.config import OF_ROWS, DataConfig
from mmsearch_trl.data.sources import data_name
from mmsearch_trl.distributed.sharding import check_sharded
from mmsearch_trl.protocol.mmsearch import IMAGE_SEARCH_TAG
from mmsearch_trl.protocol.search_r1 import SEARCH_END, load_search_r1_prompt
from mmsearch_trl.protocol.tool import Tool
from mmsearch_trl.recipe.files import check_files_of
from mmsearch_trl.recipe.model_config import RecipeModelConfig
from mmsearch_trl.recipe.packages import check_packages
from mmsearch_trl.recipe.tools import build_tools
from mmsearch_trl.recipe.validation import Where, build
from mmsearch_trl.recipe.written import RESUME, Kind, read_written
from mmsearch_trl.rewards.direct import DirectRewardConfig
from mmsearch_trl.rewards.mmsearch import RewardConfig
from mmsearch_trl.rewards.search_r1 import SearchR1RewardConfig
from mmsearch_trl.rollout.limits import LIMITS_OF_ONE_TURN, Limits
from mmsearch_trl.search.config import ImageSection, SearchConfig, TextSection
from mmsearch_trl.trainer.checkpoint_folder import checkpoint_to_resume
from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.trainer.run_records import check_unused
from mmsearch_trl.trainer.sft import MMSearchSFTConfig


_TRAINERS: dict[str, type] = {"grpo": MMSearchGRPOConfig, "sft": MMSearchSFTConfig}
_TEXT_SEARCH_TAG = "<text_search>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A parsed recipe. `values` are its keys as written, with those of the recipes that it extends and overrides."""

    path: Path
    values: Mapping[str, Any]
    model: RecipeModelConfig
    data: DataConfig
    trainer: MMSearchGRPOConfig | MMSearchSFTConfig
    search: SearchConfig
    rollout: Limits
    reward: RewardConfig | SearchR1RewardConfig | DirectRewardConfig
    tools: tuple[Tool, ...] = ()

    def validate(self, *, check_files: bool = True, evaluation: bool = False) -> None:
        """Check what no single section can see.

        Args:
            check_files: Also open the prompts and look for the data, for a local model and for the output's place.
            evaluation: Only evaluation data are needed, and nothing is asked of the training data.

        Raises:
            UserError: something is missing or contradicts something else.
        """
        if not self.model.model_name_or_path:
            raise UserError(f"{self.path}: model_name_or_path is missing: name a model folder or a Hub model")
        needed = "eval_files" if evaluation else "train_files"
        if not getattr(self.data, needed):
            raise UserError(f"{self.path}: {needed} is missing: name at least one data file")
        names = [data_name(file) for file in self.data.eval_files]
        if len(set(names)) < len(names):
            raise UserError(f"{self.path}: eval_files: two files have one name, and results go by it: {names}")
        if check_files:
            check_files_of(self.path, self.values, self.data, self.search, evaluation=evaluation)
        check_sharded()
        check_packages(self.path, self.model, self.trainer, reporting=not evaluation)
        if check_files and not evaluation:
            self._check_output()
        self._check_protocol()
        self._check_reference()
        if isinstance(self.trainer, MMSearchGRPOConfig):
            self._check_searches_possible(check_files)

    def _check_output(self) -> None:
        """There is a checkpoint to go on from, and the run mixes with no other; looked at again when it begins."""
        args, out = self.trainer, Path(str(self.trainer.output_dir))
        try:
            checkpoint = checkpoint_to_resume(args.resume_from_checkpoint, out)
            check_unused(
                out,
                checkpoint,
                resume=bool(args.resume_from_checkpoint),
                overwrite=args.overwrite_output_dir,
                model=str(self.model.model_name_or_path),
            )
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from error

    def _check_protocol(self) -> None:
        """Keys that have no meaning under a protocol are not set."""
        if self.data.protocol == "direct":
            return self._check_direct()
        search_r1 = self.data.protocol == "search_r1"
        if self.tools and self.data.protocol != "mmsearch_r1":
            raise UserError(f"{self.path}: tools: protocol {self.data.protocol} has none, take the list out")
        if self.tools and self.rollout.max_turns == 1:
            raise UserError(
                f"{self.path}: tools: rollout.max_turns is 1, so that no call can be answered: set it to 2"
            )
        for key in ("image_search_limit", "image_search_first_turn_only"):
            if search_r1 and key in (self.values.get("rollout") or {}):
                raise UserError(f"{self.path}: rollout.{key}: protocol search_r1 has no image search, take it out")
        if search_r1 and not isinstance(self.trainer, MMSearchGRPOConfig):
            raise UserError(f"{self.path}: protocol: supervised recipes train protocol mmsearch_r1, not search_r1")
        of_rows = (
            [] if isinstance(self.trainer, MMSearchGRPOConfig) else [key for key in OF_ROWS if self.values.get(key)]
        )
        if of_rows:
            raise UserError(
                f"{self.path}: {of_rows[0]} is of rows, and demonstrations of protocol {self.data.protocol} are "
                "conversations or traces, each read whole: take it out"
            )
        if not search_r1 and self.rollout.max_observation_tokens is not None:
            raise UserError(
                f"{self.path}: rollout.max_observation_tokens is a key of protocol search_r1; a reply of mmsearch_r1 "
                "is never cut (rollout.on_overflow says what happens to one that does not fit)"
            )

    def _check_direct(self) -> None:
        """Nothing is said of searches where none can be made."""
        if self.rollout.max_turns != 1:
            turns = self.rollout.max_turns
            raise UserError(f"{self.path}: rollout.max_turns is {turns}: protocol direct has one turn, take it out")
        limits = [f"rollout.{key}" for key in self.values.get("rollout") or () if key not in LIMITS_OF_ONE_TURN]
        searching = [key for key in ("search", "tools", "max_search_failure_share") if self.values.get(key)]
        if foreign := [*searching, *limits]:
            raise UserError(f"{self.path}: {foreign[0]}: protocol direct searches nothing, take it out")
        if self.data.question_files and isinstance(self.trainer, MMSearchGRPOConfig):
            raise UserError(f"{self.path}: question_files belong to traces, which are not trained on: take it out")

    def _check_reference(self) -> None:
        """TRL loads the reference model of the KL term without its revision, and so another model than is trained."""
        revised = self.model.model_revision not in (None, "main")
        if isinstance(self.trainer, MMSearchGRPOConfig) and revised and self.trainer.beta and not self.model.use_peft:
            raise UserError(
                f"{self.path}: model_revision with beta > 0: the reference would be of the main revision; save this "
                "revision to a folder and name that"
            )

    def _check_searches_possible(self, check_files: bool) -> None:
        """A search that the first prompt offers can be carried out."""
        if self.data.protocol == "direct" or (self.data.first_turn_prompt is not None and not check_files):
            return
        search_r1 = self.data.protocol == "search_r1"
        try:
            prompt = (
                load_search_r1_prompt(self.data.first_turn_prompt) if search_r1 else self.data.prompts().first_turn
            )
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from error
        rollout = self.rollout
        image = ("image", IMAGE_SEARCH_TAG, rollout.image_search_limit, ImageSection)
        text_tag = SEARCH_END if search_r1 else _TEXT_SEARCH_TAG
        text = ("text", text_tag, rollout.text_search_limit, TextSection)
        tools = (text,) if search_r1 else (image, text)
        for name, tag, limit, known in tools:
            if tag not in prompt:
                continue
            problem = None
            if limit == 0:
                problem = f"rollout.{name}_search_limit is 0: set it to 1 or more"
            elif rollout.max_turns == 1:
                problem = "rollout.max_turns is 1, so that no search can be answered: set it to 2 or more"
            elif getattr(self.search, name) is None:
                backends = ", ".join(section.backend for section in get_args(known) if hasattr(section, "backend"))
                problem = f"search.{name} is not set: give it a `backend`, one of {backends}"
            if problem:
                raise UserError(
                    f"{self.path}: the first prompt offers {name} search ({tag}), but {problem}, or name a "
                    f"first_turn_prompt that does not offer it"
                )


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None, *, kind: Kind = "grpo") -> Recipe:
    """Read a recipe and build its sections; `Recipe.validate` then checks them against each other and the disk.

    Args:
        path: The file, or the name of a shipped recipe.
        overrides: Values that replace the file's, by dotted key, as `recipe_arguments` reads them.
        kind: `"sft"` reads the trainer keys of `MMSearchSFTConfig` and has no `search:`, `rollout:` and `reward:`.

    Raises:
        UserError: the file is missing or is no mapping, a key is unknown, or a value is wrong.
        VersionError: an installed library is out of range.
    """
    written = read_written(path, overrides, kind=kind)
    tools, reward, where = build_tools(written.values.get("tools"), written.where), written.reward, written.where
    if isinstance(reward, RewardConfig):
        reward = replace(reward, tools=tuple(dict.fromkeys([*reward.tools, *(tool.name for tool in tools)])))
    trainer_values = dict(written.trainer)
    if kind == "grpo":
        _check_groups(trainer_values, where)
        if trainer_values.get("loss_type") == "dr_grpo":  # TRL divides this loss by a length; ours is the rollout's
            trainer_values.setdefault("max_completion_length", written.rollout.max_response_tokens)
    resumed = trainer_values.pop(RESUME) if isinstance(trainer_values.get(RESUME), bool) else None
    trainer = build(_TRAINERS[kind], trainer_values, where)
    trainer.resume_from_checkpoint = trainer.resume_from_checkpoint or resumed
    return Recipe(
        path=written.path,
        values=written.values,
        model=build(RecipeModelConfig, written.model, where),
        data=written.data,
        trainer=trainer,
        search=written.search,
        rollout=written.rollout,
        reward=reward,
        tools=tools,
    )


def _check_groups(values: Mapping[str, Any], where: Where) -> None:
    """Say with numbers what to change where a generation batch does not hold whole groups of rollouts."""
    defaults: dict[str, Any] = {field.name: field.default for field in fields(MMSearchGRPOConfig)}
    given = defaults | dict(values)
    per_device, group = given["per_device_train_batch_size"], given["num_generations"]
    steps = given["steps_per_generation"] or given["gradient_accumulation_steps"]
    if given["generation_batch_size"] is not None or not all(
        isinstance(n, int) and n > 0 for n in (per_device, group, steps)
    ):
        return  # wrong types, and the other way to give the batch, are TRL's and `build`'s to refuse
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batch = per_device * processes * steps
    if batch % group == 0:
        return
    fitting = ", ".join(str(number) for number in range(2, batch + 1) if batch % number == 0)
    raise UserError(
        f"{where('num_generations')}: num_generations {group} does not divide the generation batch of {batch} "
        f"rollouts (per_device_train_batch_size {per_device} x {processes} processes x {steps} steps per generation). "
        f"Make the batch a multiple of {group}, such as {(batch // group + 1) * group}, through "
        "per_device_train_batch_size, gradient_accumulation_steps or steps_per_generation"
        + (f"; or set num_generations to one of {fitting}" if fitting else "")
    )
