"""What a batch carries over comes back from a checkpoint as it was, and runs no code of the one who wrote it."""

import io
import os
import pickle
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import tiny
import torch
from PIL import Image

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import FinishReason
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.observation import Failure, FailureKind, ImageHit, Observation, TextHit
from mmsearch_trl.core.trajectory import StopReason, Trajectory, Turn
from mmsearch_trl.trainer.surplus import Groups, packed, unpacked


def groups() -> Groups:
    """Of a search that found pictures, one that found text, and one that failed."""
    [task] = tiny.tasks(1)
    seen = ImageInput(task.images[0], "key", 4, (28, 28))
    grey = Image.new("L", (3, 2), 7)
    observations = [
        Observation(tool="image_search", hits=(ImageHit("page", "url", grey, 0.5), ImageHit("no picture"))),
        Observation(tool="text_search", hits=(TextHit("title", "text", id="7"),), seconds=0.25),
        Observation(tool="text_search", failure=Failure(FailureKind.TIMEOUT, "late")),
    ]
    turns = [
        Turn(
            token_ids=(1, 2),
            logprobs=(-0.1, float("-inf")),
            finish_reason=FinishReason.STOP,
            text="<search>",
            action=Action(ActionKind.TEXT_SEARCH, "who"),
            observation=observation,
            reply=("found", seen),
            reply_ids=(5, 6, 7),
        )
        for observation in observations
    ]
    trajectory = Trajectory(
        task=task, prompt=(seen, "?"), prompt_ids=(9,), turns=turns, stop=StopReason.ANSWERED, seconds=1.5
    )
    row = {"prompt": [{"role": "user", "content": "?"}], "answers": ["new"], "extra": "{}", "category": None, "n": 3}
    return Groups([row, row], [trajectory, trajectory])


def test_groups_come_back_as_they_were(tmp_path: Path) -> None:
    given = groups()
    torch.save(packed(given), tmp_path / "surplus.pt")
    found = unpacked(torch.load(tmp_path / "surplus.pt", weights_only=True))
    assert found == given and isinstance(given.trajectories[0].task.extra, MappingProxyType)
    [picture, *_], [shown, *_] = found.trajectories[0].images, found.trajectories[0].observations
    assert picture.image.tobytes() == given.trajectories[0].images[0].image.tobytes()
    assert isinstance(shown.hits[0], ImageHit) and shown.hits[0].thumbnail is not None
    assert shown.hits[0].thumbnail.mode == "L"


def test_a_picture_that_many_rollouts_show_is_kept_once() -> None:
    content, once = packed(groups() + groups()), packed(groups())
    assert len(content["images"]) == len(once["images"]) == 2


def test_no_groups_are_kept_in_a_few_bytes(tmp_path: Path) -> None:
    content = packed(Groups())
    assert unpacked(content) == Groups() and len(content["groups"]) < 100


class _Attack:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize(
    "attack",
    [
        _Attack(os.system, "true"),
        _Attack(eval, "1"),
        _Attack(getattr, Trajectory, "__init__"),
        _Attack(pickle.loads, b"N."),
    ],
    ids=["os.system", "eval", "getattr", "pickle.loads"],
)
def test_a_checkpoint_of_somebody_else_runs_no_code(attack: _Attack) -> None:
    file = io.BytesIO()
    pickle.Pickler(file).dump(([attack], []))
    content = {"groups": torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8), "images": {}}
    with pytest.raises(Exception, match=r"cannot be read: .* is none of what groups are made of"):
        unpacked(content)


def test_functions_of_the_nouns_modules_are_no_nouns() -> None:
    content = {"groups": torch.frombuffer(bytearray(b"cmmsearch_trl.core.script\nrun_script\n."), dtype=torch.uint8)}
    with pytest.raises(Exception, match=r"core\.script\.run_script is none of what"):
        unpacked({**content, "images": {}})


def test_torn_groups_are_an_error_of_one_line() -> None:
    content = packed(groups())
    with pytest.raises(Exception, match="cannot be read") as caught:
        unpacked({**content, "groups": content["groups"][:-30]})
    assert "\n" not in str(caught.value)
