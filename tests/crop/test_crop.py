"""Which part of which image a call of `crop` brings, and which calls are refused."""

import asyncio
import random

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import FinishReason
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.observation import Failure, FailureKind, ImageHit, Observation
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import Trajectory, Turn
from mmsearch_trl.rollout.toolbox import Toolbox
from mmsearch_trl.tools.crop import Coordinates, CropCall, CropTool


FAMILIES: list[tuple[tiny.Family, Coordinates]] = [(tiny.qwen25(), "pixels"), (tiny.qwen3(), "thousandths")]
PIXELS = CropTool(limit=3, min_side=28)
PER_MILLE = CropTool(limit=3, min_side=28, coordinates="thousandths")
SEEN = tiny.noise(400, 300, random.Random(0))
"""Shown to the model in half its size."""
TASK = Task(id="t", question="who", images=(SEEN,))


def started(*calls: str, failed: bool = False) -> Trajectory:
    """A trajectory in which `calls` were answered, or refused."""
    shown = ImageInput(SEEN, "key", 1, (200, 150))
    trajectory = Trajectory(task=TASK, prompt=(shown, "who"), prompt_ids=())
    for call in calls:
        outcome = refused("no") if failed else Observation(tool="crop", hits=(ImageHit("a", thumbnail=SEEN),))
        trajectory.turns.append(
            Turn(
                token_ids=(),
                logprobs=(),
                finish_reason=FinishReason.STOP,
                text="",
                action=Action(ActionKind.TOOL, call, "crop"),
                observation=outcome,
                reply=() if failed else (ImageInput(SEEN, "key", 1, (200, 150)),),
            )
        )
    return trajectory


def refused(message: str) -> Observation:
    return Observation(tool="crop", failure=Failure(FailureKind.INVALID_QUERY, message))


def crop(tool: CropTool, text: str, trajectory: Trajectory | None = None) -> Observation:
    action = tool.read(f"<reason>r</reason><crop>{text}</crop>")
    assert action is not None
    return asyncio.run(Toolbox(tiny.CannedTools(), [tool]).answer(action, trajectory or started()))


def part(observation: Observation) -> Image.Image:
    [hit] = observation.hits
    assert isinstance(hit, ImageHit) and hit.thumbnail is not None
    return hit.thumbnail


@pytest.mark.parametrize(
    ("tool", "text", "region"),
    [
        (PIXELS, "1 [10, 20, 60, 90]", (20, 40, 120, 180)),
        (PIXELS, " 1[10,20,60,90] \n", (20, 40, 120, 180)),
        (PIXELS, "1 [0, 0, 200, 150]", (0, 0, 400, 300)),
        (PER_MILLE, "1 [0, 0, 1000, 1000]", (0, 0, 400, 300)),
        (PER_MILLE, "1 [250, 100, 500, 400]", (100, 30, 200, 120)),
        (PER_MILLE, "1 [251, 101, 499, 399]", (100, 30, 200, 120)),
    ],
)
def test_a_box_brings_the_pixels_of_the_original(tool: CropTool, text: str, region: tuple[int, int, int, int]) -> None:
    observation = crop(tool, text)
    assert observation.tool == "crop" and observation.failure is None
    assert part(observation).tobytes() == SEEN.crop(region).tobytes()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "written as"),
        ("1", "written as"),
        ("[1, 2, 3, 4]", "written as"),
        ("1 [1, 2, 3]", "written as"),
        ("1 [1.5, 2, 3, 4]", "written as"),
        ("1 [-1, 2, 3, 4]", "written as"),
        ("1 [1, 2, 3, \u0664]", "written as"),
        ("0 [1, 2, 3, 4]", "no image 0, images 1 to 1"),
        ("2 [1, 2, 30, 40]", "no image 2, images 1 to 1"),
        ("1 [10, 2, 10, 40]", "empty"),
        ("1 [10, 40, 20, 2]", "empty"),
        ("1 [10, 2, 201, 40]", "outside, the image is 200 wide and 150 high"),
        ("1 [0, 0, 200, 1]", "too narrow"),
    ],
)
def test_what_cannot_be_shown_is_the_policys_failure_and_says_why(text: str, why: str) -> None:
    failure = crop(PIXELS, text).failure
    assert failure is not None and not failure.infrastructure
    assert failure.kind is FailureKind.INVALID_QUERY and why in failure.message


def test_the_same_part_is_shown_once() -> None:
    again = crop(PIXELS, "1[10,20, 60,90]", started("1 [10, 20, 60, 90]")).failure
    assert again is not None and "shown before" in again.message
    assert crop(PIXELS, "1 [10, 20, 60, 91]", started("1 [10, 20, 60, 90]")).failure is None
    assert crop(PIXELS, "1 [10, 20, 60, 90]", started("1 [10, 20, 60, 90]", failed=True)).failure is None


def test_no_more_calls_than_the_limit_are_answered() -> None:
    calls = ("1 [1, 2, 30, 40]", "1 [2, 2, 30, 40]", "1 [3, 2, 30, 40]")
    assert crop(PIXELS, "1 [9, 2, 30, 40]", started(*calls[:2])).failure is None
    failure = crop(PIXELS, "1 [9, 2, 30, 40]", started(*calls)).failure
    assert failure is not None and "there were 3 calls already" in failure.message


@given(st.text(alphabet="0123456789 ,[]<-x\n", max_size=30) | st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    trajectory = started()
    action = Action(ActionKind.TOOL, text, "crop")
    observation = asyncio.run(Toolbox(tiny.CannedTools(), [PIXELS]).answer(action, trajectory))
    assert (observation.failure is None) == bool(observation.hits)
    if observation.failure is not None:
        assert observation.failure.kind is FailureKind.INVALID_QUERY
    else:
        assert CropCall.parse(text) is not None


@settings(max_examples=50)
@given(st.tuples(*[st.integers(0, 210)] * 4), st.sampled_from([28, 100, 448]))
def test_a_box_inside_is_shown_in_a_bounded_size_and_any_other_refused(
    box: tuple[int, int, int, int], side: int
) -> None:
    left, top, right, bottom = box
    observation = crop(CropTool(min_side=side), f"1 {list(box)}")
    if not (left < right <= 200 and top < bottom <= 150):
        assert observation.failure is not None
        return
    width, height = 2 * (right - left), 2 * (bottom - top)
    if max(width, height) > 100 * min(width, height):
        assert observation.failure is not None and "narrow" in observation.failure.message
        return
    size = part(observation).size
    assert max(size) == max(width, height, side)
    if max(width, height) >= side:
        assert size == (width, height)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"limit": 0}, "limit is 0"),
        ({"min_side": 8}, "min_side is 8"),
        ({"coordinates": "percent"}, "coordinates is 'percent'"),
    ],
)
def test_a_wrong_setting_is_named(keys: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CropTool(**keys)
