"""What can be told of a run before anything is loaded: `mmsearch check` tells all of it, a run stops at the first
problem. In seconds, and without weights.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

import torch

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.task import Task
from mmsearch_trl.data.sources import count_rows, data_name, find_source
from mmsearch_trl.data.tasks import read_tasks
from mmsearch_trl.engine.vllm_client import VLLMClient
from mmsearch_trl.models.family import check_family, check_vllm_on_cpu
from mmsearch_trl.models.location import find_model
from mmsearch_trl.protocol.base import TurnProtocol
from mmsearch_trl.recipe.build import base_of, build_protocol, is_adapter, load_processor
from mmsearch_trl.recipe.data import count_training_rows, reading_of
from mmsearch_trl.recipe.finding import Finding, Level, examined
from mmsearch_trl.recipe.memory import Demand, Memory, Sharding, memory_here, memory_of
from mmsearch_trl.recipe.model_shape import ModelShape, model_shape
from mmsearch_trl.recipe.recipe import Recipe
from mmsearch_trl.recipe.rewards import check_rewards
from mmsearch_trl.recipe.schedule import Batches, check_evaluations, check_learning_rate, plain
from mmsearch_trl.recipe.start import check_start
from mmsearch_trl.rollout.background_loop import run_to_end
from mmsearch_trl.search.calls.section import BackendConfig
from mmsearch_trl.search.factory import build_runtime
from mmsearch_trl.search.index_info import describe_index
from mmsearch_trl.search.web.service import check_url
from mmsearch_trl.trainer.config import MMSearchGRPOConfig


_FIRST_ROWS = 20
_ANY_STEPS = 1000
_MODEL, _SHAPE, _MEMORY, _DATA = "model", "adapter and attention", "memory", "data"
_RESTS_ON = {_SHAPE: (_MODEL,), _MEMORY: (_MODEL, _SHAPE), _DATA: (_MODEL,)}
_LOADS_ENCODER = ("dense", "hybrid", "qdrant")


Check = tuple[str, Callable[[], str]]
"""A name, and what looks: it says what it found, or raises."""


class Preflight:
    """The checks of a recipe.

    Args:
        evaluation: It is to be evaluated by and not trained by.
        processes: Of the run; default: those of this one.
    """

    def __init__(self, recipe: Recipe, *, evaluation: bool = False, processes: int | None = None) -> None:
        self._recipe = recipe
        self._args = recipe.trainer
        self._evaluation = evaluation
        self._processes = processes or recipe.trainer.world_size
        self._on = "in one process" if self._processes == 1 else f"in {self._processes} processes"
        self._warned: dict[str, str] = {}

    def require(self) -> None:
        """What a run does not look at by itself before it loads a model.

        Raises:
            UserError: the first problem; says where the recipe is.
        """
        for _, look in self._of_the_run():
            try:
                look()
            except UserError as error:
                message = str(error)
                path = str(self._recipe.path)
                raise UserError(message if path in message else f"{path}: {message}") from error

    def findings(self) -> Iterator[Finding]:
        """Everything, one check after the other; what rests on one that failed is left out."""
        failed: set[str] = set()
        for name, look in [("recipe", self._validated), *self._of_the_run(), *self._of_the_world()]:
            if failed.intersection(_RESTS_ON.get(name.partition(":")[0], ())):
                continue
            finding = examined(name, look)
            failed |= {name} if finding.level is Level.PROBLEM else set()
            yield finding
            if warning := self._warned.pop(name, None):
                yield Finding(name=name, found=warning, level=Level.WARNING)

    def first_prompt(self) -> str:
        """The prompt of the first question as the model sees it, image tokens counted.

        Raises:
            UserError: the processor, the prompt or the question cannot be used.
        """
        task = next(self._tasks(self._files[0]), None)
        if task is None:
            raise UserError(f"{self._files[0]}: no usable row among the first {_FIRST_ROWS}")
        return self._protocol.chat.outlined(self._protocol.prompt(task).token_ids)

    def _of_the_run(self) -> list[Check]:
        checks: list[Check] = [(_MODEL, self._model)]
        if isinstance(self._args, MMSearchGRPOConfig):
            checks.append(("rewards", partial(check_rewards, self._recipe)))
        if self._evaluation:
            return checks
        checks += [("evaluations", self._evaluations), ("learning rate", self._learning)]
        return [*checks, (_SHAPE, self._shape_found)]

    def _of_the_world(self) -> list[Check]:
        checks: list[Check] = [] if self._evaluation else [("batches", self._batches), (_MEMORY, self._memory)]
        if isinstance(self._args, MMSearchGRPOConfig):
            checks += [(f"{_DATA}: {Path(file).name}", partial(self._data, file)) for file in self._files]
            for name, section in (
                ("image search", self._recipe.search.image),
                ("text search", self._recipe.search.text),
            ):
                if section is not None:
                    checks.append((name, partial(self._search, section)))
            if self._args.use_vllm and self._args.vllm_mode == "server":
                checks += [
                    (f"vLLM: {url}", partial(self._server, url))
                    for url in self._args.sampler_options().vllm_server_urls
                ]
        return checks

    @property
    def _files(self) -> Sequence[str]:
        data = self._recipe.data
        return data.eval_files if self._evaluation else [*data.train_files, *data.eval_files]

    def _validated(self) -> str:
        self._recipe.validate(evaluation=self._evaluation)
        return str(self._recipe.path)

    def _model(self) -> str:
        model = self._recipe.model
        name = str(model.model_name_or_path)
        find_model("model_name_or_path", name, revision=model.model_revision, weights=False)
        way = None if self._evaluation else check_start(model)
        if not is_adapter(model):
            find_model("model_name_or_path", name, revision=model.model_revision)
            check_family("model_name_or_path", name, model.model_revision)
            if self._colocated and not torch.cuda.is_available():
                check_vllm_on_cpu("model_name_or_path", name)
            return name
        how = {"continue": ", to be trained on", "merge": ", to be merged into it"}.get(str(way), "")
        return f"{name}, an adapter of {base_of(model)[0]}{how}"

    @property
    def _colocated(self) -> bool:
        args = self._args
        return isinstance(args, MMSearchGRPOConfig) and args.use_vllm and args.vllm_mode == "colocate"

    @cached_property
    def _shape(self) -> ModelShape:
        args = self._args
        return model_shape(
            self._recipe.model,
            freeze_vision=args.freeze_vision,
            freeze_prefix=args.freeze_prefix,
            written=list(self._recipe.values),
        )

    def _shape_found(self) -> str:
        shape = self._shape
        share = shape.trained.count / shape.parameters
        return f"{shape.family}, {shape.parameters / 1e6:,.1f} million parameters, {share:.1%} of them trained"

    def _memory(self) -> str:
        there, device = memory_here()
        demand = Demand.of(self._recipe, bf16=bool(self._args.bf16))
        memory: Memory = memory_of(self._shape, demand, Sharding.NONE, 1)
        needed = f"{memory.states:.1f} GiB for weights, gradients and optimizer states of one process"
        if memory.states > there:
            self._warned[_MEMORY] = (
                f"more than the {there:.1f} GiB of {device}, unless they are sharded: `mmsearch doctor --recipe "
                f"{self._recipe.path}` says what each way of sharding takes"
            )
        more = f"up to {memory.activations + memory.vision:.1f} GiB of activations" if demand.tokens else "activations"
        return f"{needed}; {more} come on top. {device} has {there:.1f} GiB"

    def _evaluations(self) -> str:
        names = [data_name(file) for file in self._recipe.data.eval_files]
        searches, reward = self._recipe.data.protocol != "direct", self._recipe.reward
        judged = bool(reward.function) or reward.scored_by is not None
        check_evaluations(self._args, names, searches=searches, judged=judged)
        return f"eval_strategy: {plain(self._args.eval_strategy)}, on {', '.join(names) or 'nothing'}"

    @cached_property
    def _rows(self) -> int | None:
        return count_training_rows(self._recipe)

    def _batches(self) -> str:
        args, rows = self._args, self._rows
        if not isinstance(args, MMSearchGRPOConfig):
            size = args.per_device_train_batch_size * args.gradient_accumulation_steps * self._processes
            return f"{size} conversations an update, {self._on}"
        batches = Batches.of(args, rows or 0, enough=rows is not None, processes=self._processes)
        if rows is None:
            return f"{batches}, {self._on}"
        return (
            f"{batches}, {batches.per_epoch} rollouts an epoch, {batches.steps:,} updates in all on {rows:,} "
            f"questions, {self._on}"
        )

    def _learning(self) -> str:
        args, steps = self._args, _ANY_STEPS
        if args.max_steps > 0:
            steps = args.max_steps
        elif isinstance(args, MMSearchGRPOConfig) and self._rows is not None:
            steps = max(1, Batches.of(args, self._rows, enough=False, processes=self._processes).steps)
        return check_learning_rate(args, steps)

    @cached_property
    def _protocol(self) -> TurnProtocol:
        return build_protocol(self._recipe, load_processor(self._recipe.model))

    def _tasks(self, file: str) -> Iterator[Task]:
        data = self._recipe.data
        reading = reading_of(self._recipe, self._protocol, self._recipe.reward.scored_by)
        tasks = read_tasks(file, reading=reading, on_error=data.on_bad_row, resize=data.resize_images)
        return islice(tasks, _FIRST_ROWS)

    def _data(self, file: str) -> str:
        count, lengths, pictures = count_rows(find_source(file, streaming=self._recipe.data.streaming)), [], 0
        for task in self._tasks(file):
            if task.images and not self._protocol.chat.sees_images:
                raise UserError(
                    f"{file}: question {task.id} has an image, and the model is a language model: name a "
                    "vision-language model, or data without images"
                )
            pictures += bool(task.images)
            lengths.append(len(self._protocol.prompt(task).token_ids))
        if not lengths:
            raise UserError(f"{file}: no usable row among the first {_FIRST_ROWS}")
        most = self._recipe.data.max_prompt_length
        if most is not None and min(lengths) > most:
            raise UserError(
                f"{file}: max_prompt_length is {most}, and each of the first {len(lengths)} prompts has "
                f"{min(lengths)} tokens or more: all would be left out; raise it"
            )
        if not pictures and self._recipe.search.image is not None:
            name = f"{_DATA}: {Path(file).name}"
            self._warned[name] = "the recipe searches by image, and none of the first questions has one"
        total = "" if count is None else f"{count:,} rows; "
        return f"{total}of the first {len(lengths)}, {pictures} with images, prompts of up to {max(lengths)} tokens"

    def _search(self, section: BackendConfig) -> str:
        section.check()
        folders = [Path(getattr(section, key)) for key in section.paths]
        described = [describe_index(folder) for folder in folders if (folder / "manifest.json").is_file()]
        for info in described:
            if info.missing:
                raise UserError(f"{section.section}: the index is damaged ({info.missing}): build it again")
        if encoder := getattr(section, "encoder", None):
            find_model(f"{section.section}.encoder", encoder)
        if section.backend not in _LOADS_ENCODER and not any(info.manifest.model for info in described):
            self._ask(section)
        held = "".join(f", {info.manifest.count:,} entries" for info in described)
        return f"{section.backend}, ready{held}"

    def _ask(self, section: BackendConfig) -> None:
        """Open a backend by itself, and see that it is ready where it can tell."""
        search = self._recipe.search
        alone = replace(search, cache=None, cache_mode="live")  # nothing is written
        alone = replace(alone, image=None) if section is search.text else replace(alone, text=None)
        runtime = build_runtime(alone)
        try:
            if search.cache_mode != "replay":
                run_to_end(runtime.check())
        finally:
            runtime.close()

    def _server(self, url: str) -> str:
        check_url(url, "http://127.0.0.1:8000")

        async def ask() -> bool:
            client = VLLMClient(url, request_seconds=10)
            try:
                return await client.healthy()
            finally:
                await client.close()

        if run_to_end(ask()):
            return "answers"
        self._warned[f"vLLM: {url}"] = (
            "start it with `mmsearch vllm MODEL`; a run waits for it for "
            f"{self._args.vllm_server_timeout:g} s"  # pyright: ignore[reportAttributeAccessIssue]
        )
        return "does not answer"
