"""The tool `crop`: a part of an image that the model has seen, cut out of the original and enlarged.

    <crop>1 [12, 40, 96, 120]</crop>

names an image and a box: left, top, right, bottom. Images count from 1 in the order of their appearance: the
question's own, then those of every reply, crops among them. Coordinates are what the model's family was taught for
grounding: pixels of the image *as the model sees it*, after its processor's resizing (Qwen2.5-VL), or thousandths of
its width and height (Qwen2-VL and Qwen3-VL). The part is cut from the image before that resizing, so it shows more
than was seen.

A call that is written wrong, names no image that there is, an empty box, one that reaches outside or one that was
shown before, or comes after `limit` others, is the policy's failure (`INVALID_QUERY`), and the reply says why.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from PIL import Image

from mmsearch_trl.core.action import Action
from mmsearch_trl.core.errors import SearchError, UserError
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.observation import FailureKind, ImageHit, Observation
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.protocol.tool import called


Coordinates = Literal["pixels", "thousandths"]

_CALL = re.compile(r"([0-9]{1,4})\s*\[\s*" + r"\s*,\s*".join([r"([0-9]{1,6})"] * 4) + r"\s*\]")
_MOST_ELONGATED = 100
"""Sides of a crop may differ by this factor; Qwen's processors refuse 200."""
_UNITS: dict[str, str] = {
    "pixels": "pixels of the image as you see it",
    "thousandths": "thousandths of the image's width and height, 0 to 1000",
}


class CropCall(NamedTuple):
    """Which part of which image; the box is in the model's coordinates."""

    image: int
    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def parse(cls, text: str | None) -> "CropCall | None":
        """Read `1 [12, 40, 96, 120]`; None where something else is written."""
        match = _CALL.fullmatch((text or "").strip())
        return cls(*map(int, match.groups())) if match else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CropTool:
    """
    Raises:
        UserError: a number is out of range, or the coordinates are of no kind.
    """

    limit: int = field(default=2, metadata={"help": "Calls of a trajectory, refused ones among them."})
    coordinates: Coordinates = field(
        default="pixels",
        metadata={
            "help": "What a box is given in. pixels: of the image as the model sees it (Qwen2.5-VL). thousandths: of "
            "its width and height (Qwen3-VL)."
        },
    )
    min_side: int = field(
        default=448, metadata={"help": "Pixels to which the longer side of a smaller part is enlarged."}
    )

    name = "crop"

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise UserError(f"limit is {self.limit}: it must be at least 1")
        if not 28 <= self.min_side <= 2048:
            raise UserError(f"min_side is {self.min_side}: it must be from 28 to 2048")
        if self.coordinates not in get_args(Coordinates):
            raise UserError(f"coordinates is {self.coordinates!r}: it must be pixels or thousandths")

    @property
    def prompt(self) -> str:
        times = "once" if self.limit == 1 else f"up to {self.limit} times"
        return (
            f"There is one more action, which you may choose {times}: look closer at a part of an image that you have "
            "seen. End the turn with the number of the image and a box:\n"
            "<reason>...</reason><crop>1 [12, 40, 96, 120]</crop>\n"
            "Images are numbered from 1 in the order in which they were shown. A box is [left, top, right, bottom], "
            f"in {_UNITS[self.coordinates]}. The part is sent back to you, enlarged, as a new image."
        )

    def read(self, text: str) -> Action | None:
        return called(self.name, text)

    async def run(self, action: Action, trajectory: Trajectory) -> Observation:
        earlier = [turn for turn in trajectory.turns if turn.observation and turn.action.tool == self.name]
        shown = [CropCall.parse(turn.action.text) for turn in earlier if turn.reply_images]
        if len(earlier) >= self.limit:
            raise _refusal(f"there were {self.limit} calls already, and no more are allowed")
        call, images = CropCall.parse(action.text), trajectory.images
        if call is None:
            raise _refusal("it is written as: image number [left, top, right, bottom], in whole numbers")
        if not 1 <= call.image <= len(images):
            raise _refusal(f"there is no image {call.image}, images 1 to {len(images)} were shown")
        if call in shown:
            raise _refusal("this part was shown before")
        image = images[call.image - 1]
        part = self._enlarged(image.image.crop(self._region(call, image)))
        title = f"Image {len(images) + 1}, a part of image {call.image}"
        return Observation(tool=self.name, hits=(ImageHit(title, thumbnail=part),))

    def render(self, observation: Observation, task: Task) -> Sequence[str | Image.Image]:
        if observation.failure is not None:
            return [f"The part cannot be shown: {observation.failure.message}.\n"]
        [hit] = observation.hits
        assert isinstance(hit, ImageHit) and hit.thumbnail is not None
        return [f"{hit.title}: ", hit.thumbnail, "\n"]

    def _region(self, call: CropCall, image: ImageInput) -> tuple[int, int, int, int]:
        """The box in pixels of the original, each side moved outwards to a whole one."""
        width, height = image.shown_size if self.coordinates == "pixels" else (1000, 1000)
        if call.left >= call.right or call.top >= call.bottom:
            raise _refusal("the box is empty, right must be over left and bottom over top")
        if call.right > width or call.bottom > height:
            raise _refusal(f"the box reaches outside, the image is {width} wide and {height} high")
        original = image.image
        region = (
            call.left * original.width // width,
            call.top * original.height // height,
            -(-call.right * original.width // width),
            -(-call.bottom * original.height // height),
        )
        sides = sorted((region[2] - region[0], region[3] - region[1]))
        if sides[1] > _MOST_ELONGATED * sides[0]:
            raise _refusal("the box is too narrow")
        return region

    def _enlarged(self, part: Image.Image) -> Image.Image:
        """A part that is smaller than `min_side`, brought to it; what is larger than the model's processor takes, the
        processor reduces."""
        scale = self.min_side / max(part.size)
        if scale <= 1:
            return part
        size = (max(1, round(part.width * scale)), max(1, round(part.height * scale)))
        return part.resize(size, Image.Resampling.BICUBIC)


def _refusal(reason: str) -> SearchError:
    return SearchError(FailureKind.INVALID_QUERY, reason)
