"""Whole rollouts against the recorded ones of MMSearch-R1, under `protocol: mmsearch_r1_upstream`.

Every scenario runs through `run_trajectory` with tools of upstream's own signature. Where upstream crashes or leaves a
batch that cannot be trained, ours has a documented better behaviour, named in `BETTER`; everything else is compared in
full. Two rules hold in every scenario: image pads equal image features, and nothing raises.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import pytest
import toy
from conformance.upstream import ResponseArrays, response_arrays
from conformance.upstream_tools import ReadyMade, ReadyMadeProtocol, UpstreamTools
from PIL import Image

from mmsearch_trl.core.completion import SamplingParams
from mmsearch_trl.core.observation import FailureKind
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import StopReason, Trajectory
from mmsearch_trl.engine.scripted import ScriptedEngine
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.protocol.prompt_files import Prompts
from mmsearch_trl.rewards.mmsearch import RewardConfig, score
from mmsearch_trl.rollout.loop import run_trajectory
from mmsearch_trl.rollout.upstream_limits import UpstreamLimits


Vector = dict[str, Any]
PROCESSOR = toy.build_processor()
FIRST_PROMPT = "Here is the image and the question:\n{image} {question}"
CANONICAL = "There is an error encountered in performing search. Please reason with your own capaibilities."


class _Uncut(UpstreamLimits):
    def finish(self, trajectory: Trajectory, chat: ChatEncoder) -> Trajectory:
        return trajectory


def tools_of(vector: Vector) -> UpstreamTools:
    """Tools that answer every call with the scenario's reply."""
    image, text, fine = vector["tools"]["image"], vector["tools"]["text"]["text"], {"success": vector["id"] != "ro13"}
    images = [Image.new("RGB", (width, height), "navy") for width, height in image["images"]]
    return UpstreamTools(lambda url: (image["text"], images, fine), lambda query: (text, fine))


class Scenario:
    """A vector, rolled out."""

    def __init__(self, vector: Vector) -> None:
        config = vector["config"]
        self.vector, self.length = vector, int(config["response_length_total"])
        prompts = Prompts(
            first_turn=FIRST_PROMPT,
            after_image_search=config["after_image_prompt"] or "",
            after_text_search=config["after_text_prompt"] or "",
            forced_answer="",
        )
        self.protocol = ReadyMadeProtocol(PROCESSOR, prompts)
        self.chat = self.protocol.chat
        self.limits = UpstreamLimits(
            max_turns=config["max_gen_round"],
            max_response_tokens=self.length,
            image_search_limit=config["image_search_limit"],
            text_search_limit=config["text_search_limit"],
        )
        tools = tools_of(vector)
        self.calls = tools.calls
        self.whole = asyncio.run(self._run(tools, _Uncut(**asdict(self.limits))))
        self.trajectories = asyncio.run(self._run(tools_of(vector), self.limits))

    async def _run(self, tools: UpstreamTools, limits: UpstreamLimits) -> list[Trajectory]:
        """One trajectory after the other, so that the order of tool calls is that of the vector's first round."""
        return [
            await run_trajectory(
                self._task(i),
                ScriptedEngine([_ids(turn) for turn in turns], [toy.PAD, toy.END]),
                self.protocol,
                tools,
                limits,
                SamplingParams(max_tokens=1),
            )
            for i, turns in enumerate(self.vector["turns"])
        ]

    def _task(self, i: int) -> Task:
        copies = len(self.vector["turns"]) // len(self.vector["prompts"])
        number = i // copies
        prompt = self.vector["prompts"][number]
        image = Image.new("RGB", (28 * prompt["prompt_image_tokens"], 28))
        return Task(id=str(i), question=prompt["question"], images=(image,), image_url=f"url{number}")

    def arrays(self, i: int) -> ResponseArrays:
        return response_arrays(self.trajectories[i], self.length, pad_id=toy.PAD, turn_end_id=toy.END)

    def active_per_round(self) -> list[list[int]]:
        rounds = max(len(trajectory.turns) for trajectory in self.whole)
        return [[i for i, t in enumerate(self.whole) if len(t.turns) > number] for number in range(rounds)]


def test_rollout_vector(rollout_vector: Vector) -> None:
    scenario = Scenario(rollout_vector)
    for trajectory in scenario.trajectories:
        pads = trajectory.token_ids.count(toy.IMAGE_PAD)
        assert pads == sum(image.num_tokens for image in trajectory.images)
        assert trajectory.stop is not None and trajectory.stop is not StopReason.FAILED
    expected = rollout_vector["expected"]
    better = BETTER.get(rollout_vector["id"])
    if better is not None:
        better(scenario)
    elif expected["error"] is not None:
        _trains(scenario)
    else:
        _compare(scenario, expected)


def _compare(scenario: Scenario, expected: Vector) -> None:
    assert scenario.active_per_round() == expected["engine_active_per_round"]
    assert sorted(scenario.calls) == sorted(expected["tool_calls"])
    assert len(scenario.trajectories) == expected["batch_size"]
    for i, wanted in enumerate(expected["trajectories"]):
        _compare_trajectory(scenario, i, wanted)


def _compare_trajectory(scenario: Scenario, i: int, wanted: Vector) -> None:
    trajectory, arrays = scenario.trajectories[i], scenario.arrays(i)
    assert PROCESSOR.tokenizer.decode(trajectory.completion_ids) == wanted["response_text"]
    assert _rle(arrays.ids) == wanted["response_ids_rle"]
    assert _rle(arrays.response_mask) == wanted["multi_turn_response_mask_rle"]
    assert _rle(arrays.attention_mask) == wanted["attention_mask_response_rle"]
    assert _rle(arrays.loss_mask) == wanted["loss_mask_rle"]
    assert sum(arrays.loss_mask) == wanted["loss_token_count"]
    assert len(trajectory.completion_ids) == wanted["nonpad_len"]
    assert len(trajectory.prompt_ids) - 1 == wanted["prompt_last_position"]
    assert trajectory.responses == wanted["assistant_segments"]
    valid = sum(arrays.attention_mask)
    assert valid == wanted["valid_response_length"]
    assert (valid - 1) % scenario.length == wanted["reward_index"]
    reward = score(trajectory.responses, ["Titanic"], RewardConfig(format_rule="three_rounds")).reward
    assert reward == pytest.approx(wanted["reward"], abs=1e-9)
    assert arrays.ids.count(toy.IMAGE_PAD) == wanted["image_pad_tokens_in_response"]
    if _consistent(scenario, wanted):
        assert len(trajectory.images) == wanted["images_in_multi_modal_data"]


def _consistent(scenario: Scenario, wanted: Vector) -> bool:
    """Whether upstream's images agree with its own pads; it keeps images whose pads it cut off, and the reverse."""
    count = wanted["images_in_multi_modal_data"] - 1
    sizes = scenario.vector["tools"]["image"]["images"][:count]
    return sum(width * height // 784 for width, height in sizes) == wanted["image_pad_tokens_in_response"]


def _trains(scenario: Scenario) -> None:
    """Upstream raised: ours comes to its end, with tensors that fit each other."""
    for i, trajectory in enumerate(scenario.trajectories):
        arrays = scenario.arrays(i)
        assert len({len(column) for column in arrays}) == 1 and len(arrays.ids) == scenario.length
        assert all(m <= a for m, a in zip(arrays.loss_mask, arrays.attention_mask, strict=True))
        assert len(trajectory.loss_mask) == len(trajectory.logprobs) == len(trajectory.completion_ids)


def _failed_search_is_typed(scenario: Scenario) -> None:
    """The status decides, not the wording (ro13); placeholders without thumbnails, or the reverse, are no answer."""
    _trains(scenario)
    observations = [o for trajectory in scenario.whole for o in trajectory.observations]
    assert observations
    for observation in observations:
        assert observation.failure is not None and observation.failure.infrastructure
        assert observation.failure.kind in (FailureKind.UNAVAILABLE, FailureKind.BAD_RESPONSE)
    for trajectory in scenario.trajectories:
        if any(True for _ in trajectory.observations):
            assert CANONICAL in PROCESSOR.tokenizer.decode(trajectory.completion_ids)
            assert len(trajectory.images) == 1


def _whole_question_is_quoted(scenario: Scenario) -> None:
    for trajectory in scenario.trajectories:
        text = PROCESSOR.tokenizer.decode(trajectory.completion_ids)
        if trajectory.turns[0].action.calls_tool:
            assert f"Original user's question: {trajectory.task.question}\n" in text
    assert scenario.active_per_round() == scenario.vector["expected"]["engine_active_per_round"]


def _no_vision_token_is_trained(scenario: Scenario) -> None:
    _trains(scenario)
    for trajectory in scenario.trajectories:
        sampled = {token for turn in trajectory.turns for token in turn.token_ids}
        assert sampled.isdisjoint(scenario.chat.vision_ids)


def _no_image_is_split(scenario: Scenario) -> None:
    """The response ends before an image that does not fit; what comes before it is upstream's."""
    _trains(scenario)
    for i, wanted in enumerate(scenario.vector["expected"].get("trajectories") or []):
        ids = scenario.trajectories[i].completion_ids
        assert ids == _unrolled(wanted["response_ids_rle"])[: len(ids)]
        assert len(ids) <= scenario.length


BETTER: dict[str, Callable[[Scenario], None]] = {
    "ro13": _failed_search_is_typed,
    "ro20": _trains,
    "ro27": _no_image_is_split,
    "ro30": _whole_question_is_quoted,
    "ro31": _no_vision_token_is_trained,
    "ro32": _failed_search_is_typed,
    "ro33": _failed_search_is_typed,
}


def test_n_of_one_keeps_the_images_of_its_searches(rollout_vector: Vector) -> None:
    """ro29 and every other scenario: whatever `n`, an executed image search leaves its images in the trajectory."""
    for trajectory in Scenario(rollout_vector).whole:
        found = sum(len(o.images) for o in trajectory.observations if isinstance(o, ReadyMade))
        assert len(trajectory.images) == 1 + found


def _ids(turn: str | Sequence[int]) -> list[int]:
    return list(turn) if not isinstance(turn, str) else [*map(ord, turn), toy.END]


def _rle(values: Sequence[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return runs


def _unrolled(runs: Sequence[Sequence[int]]) -> list[int]:
    return [value for value, count in runs for _ in range(count)]
