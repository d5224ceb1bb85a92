"""One question to an agent in the terminal: its turns and what its tools find, as they come."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mmsearch_trl.commands.search_once import image_file, show_observation
from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import Completion, SamplingParams
from mmsearch_trl.core.errors import EngineError, UserError
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.message import Message
from mmsearch_trl.core.observation import Observation
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.text import printable
from mmsearch_trl.core.trajectory import StopReason, Trajectory
from mmsearch_trl.data.images import resize_prompt_image
from mmsearch_trl.data.opening import Opening
from mmsearch_trl.engine.base import Engine
from mmsearch_trl.protocol.base import SearchProtocol, TurnProtocol
from mmsearch_trl.recipe.build import build_engine, build_protocol, build_tools, load_agent, load_processor
from mmsearch_trl.recipe.recipe import Recipe, load_recipe
from mmsearch_trl.recipe.written import ON_A_CPU
from mmsearch_trl.rollout.background_loop import run_to_end
from mmsearch_trl.rollout.loop import Tools, named_sampling, run_trajectory
from mmsearch_trl.rollout.toolbox import Toolbox
from mmsearch_trl.search.calls.record import CallRecord


def ask(options: argparse.Namespace, config: Path, keys: Mapping[str, Any]) -> Trajectory:
    """Roll out one question, printing every turn and every observation when it is there.

    Args:
        options: Of `mmsearch ask`.
        config: The recipe.
        keys: Its keys with new values.

    Raises:
        UserError: something that was named cannot be used.
        EngineError: the model could not write a turn.
    """
    here = {} if torch.cuda.is_available() else ON_A_CPU
    recipe = load_recipe(config, {**here, **keys, "model_name_or_path": options.model})
    image = None if options.image is None else image_file(options.image)
    protocol = build_protocol(recipe, load_processor(recipe.model))
    search = build_tools(recipe, protocol)
    task = _task(options.question, image, recipe, protocol)
    model: Any = load_agent(recipe.model).eval()
    engine = build_engine(model.to("cuda" if torch.cuda.is_available() else "cpu"), protocol.chat)
    console = Console(emoji=False)
    sampling = named_sampling(recipe.rollout, f"{options.seed}/ask", options.temperature)
    tools = None
    if search is not None and isinstance(protocol, SearchProtocol):
        tools = _ShownTools(Toolbox(search, protocol.tools), console)
    try:
        trajectory = run_to_end(
            _roll_out(task, _ShownEngine(engine, protocol, console), protocol, tools, recipe, sampling)
        )
    finally:
        engine.close()
        if search is not None:
            search.close()
    if trajectory.stop is StopReason.FAILED and trajectory.failure is not None:
        raise EngineError(f"the question could not be answered: {trajectory.failure.message}")
    _show_end(trajectory, console)
    return trajectory


def _task(question: str, image: Any, recipe: Recipe, protocol: TurnProtocol) -> Task:
    if image is not None and protocol.chat.image_pad_id < 0:
        raise UserError(f"--image: {recipe.model.model_name_or_path} is a language model, and sees no image")
    if image is not None and recipe.data.resize_images:
        image = resize_prompt_image(image)
    images = () if image is None else (image,)
    if isinstance(protocol, SearchProtocol):
        return Task(id="ask", question=question, images=images)
    asked = Message("user", (*(None for _ in images), question))
    opening = Opening.load(recipe.data.system_prompt, recipe.data.template)
    return Task(id="ask", question=question, images=images, messages=opening.applied([asked]))


async def _roll_out(
    task: Task, engine: Engine, protocol: TurnProtocol, tools: Tools | None, recipe: Recipe, sampling: SamplingParams
) -> Trajectory:
    try:
        return await run_trajectory(task, engine, protocol, tools, recipe.rollout, sampling)
    finally:
        if tools is not None:
            await tools.disconnect()


@dataclass(frozen=True, slots=True)
class _ShownEngine:
    """An engine whose turns are printed when they are written."""

    engine: Engine
    protocol: TurnProtocol
    console: Console

    async def generate(
        self, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: SamplingParams
    ) -> Completion:
        with self.console.status("writing"):
            completion = await self.engine.generate(token_ids, images, sampling)
        text = self.protocol.chat.decode(self.protocol.sampled(completion).token_ids)
        self.console.print(printable(text.strip()), markup=False, highlight=False, style="cyan")
        return completion


@dataclass(frozen=True, slots=True)
class _ShownTools:
    """Tools whose calls and observations are printed."""

    tools: Tools
    console: Console

    async def answer(self, action: Action, trajectory: Trajectory) -> Observation:
        with self.console.status(f"{action.tool}: {printable(action.text or 'the image')}"):
            observation = await self.tools.answer(action, trajectory)
        self.console.print()
        show_observation(observation, self.console)
        self.console.print()
        return observation

    def drain_records(self) -> list[CallRecord]:
        return self.tools.drain_records()

    async def disconnect(self) -> None:
        await self.tools.disconnect()


def _show_end(trajectory: Trajectory, console: Console) -> None:
    last = trajectory.turns[-1].action if trajectory.turns else None
    answered = last is not None and last.kind is ActionKind.ANSWER
    answer = printable(last.text or "") if answered and last is not None else f"no answer ({trajectory.stop})"
    counts = [_count(sum(len(turn.token_ids) for turn in trajectory.turns), "token")]
    if trajectory.has_tools:  # without tools the turn is the answer, and is there already
        console.print(f"\n{answer}", style="bold", markup=False, highlight=False)
        calls = sum(turn.observation is not None for turn in trajectory.turns)
        counts = [_count(len(trajectory.turns), "turn"), _count(calls, "tool call")]
    console.print(f"{', '.join(counts)}, {trajectory.seconds:.1f} s", style="dim", highlight=False)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
