"""Images during training: never sent between ranks, never logged by TRL, and preprocessed once each."""

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import accelerate.utils.operations
import pytest
import tiny
import torch
from PIL import Image
from trl.trainer import grpo_trainer

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.observation import ImageHit, ImageQuery, Observation
from mmsearch_trl.distributed import ranks


pytestmark = pytest.mark.slow

FAMILY = tiny.qwen25()
PATCH_CHANNELS = 1176


class _Finder(pickle.Pickler):
    """Meets every object that would travel, at any depth, and keeps those that hold pixels."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        self.found: list[Any] = []

    def persistent_id(self, obj: Any) -> str | None:
        pixels = isinstance(obj, torch.Tensor) and obj.shape[-1:] == (PATCH_CHANNELS,)
        encoded = isinstance(obj, bytes) and obj[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0")
        if not (pixels or encoded or isinstance(obj, Image.Image | ImageInput)):
            return None
        self.found.append(obj)
        return "picture"


def _pictures(value: Any) -> list[Any]:
    finder = _Finder()
    finder.dump(value)
    return finder.found


def test_a_picture_is_found_wherever_it_hides() -> None:
    [task] = tiny.tasks(1)
    hit = ImageHit("page", thumbnail=task.images[0])
    for value in (task.images, [{"a": (task.images,)}], hit, torch.zeros(3, PATCH_CHANNELS), b"\x89PNG..."):
        assert _pictures(value)
    assert not _pictures([{"content": "text"}, 1.0, torch.zeros(3, 4)])


def _logs(trainer: tiny.MMSearchGRPOTrainer) -> list[Any]:
    logs = trainer._logs
    return [list(logs[name]) for name in ("images", "prompt", "completion")] + [dict(logs["extra"])]


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Everything that travels between ranks as a Python object."""
    seen: list[Any] = []
    gather = accelerate.utils.operations.gather_object

    def spy(value: Any) -> Any:
        seen.append(value)
        return gather(value)

    for module in (grpo_trainer, ranks, accelerate.utils.operations, accelerate.utils):
        monkeypatch.setattr(module, "gather_object", spy)
    return seen


def test_no_picture_is_gathered_or_logged_in_training(tmp_path: Path, gathered: list[Any]) -> None:
    tools, given = tiny.CannedTools(), tiny.tasks(4, images=(1, 2))
    trainer = tiny.trainer(FAMILY, tmp_path, given, tools=tools, max_steps=2, log_completions=True)
    trainer.train()
    assert {tool for tool, _ in tools.calls} == {ActionKind.IMAGE_SEARCH, ActionKind.TEXT_SEARCH}
    assert len(gathered) > 4, "TRL gathers prompts and completions"
    assert not _pictures(gathered)
    assert trainer._logs["completion"] and not _pictures(_logs(trainer))


def test_no_picture_is_gathered_or_logged_in_evaluation(tmp_path: Path, gathered: list[Any]) -> None:
    tools = tiny.CannedTools()
    trainer = tiny.trainer(FAMILY, tmp_path, tools=tools)
    trainer.evaluate(tiny.dataset(tiny.tasks(5, images=(1, 2), seed=4)))
    assert any(tool == ActionKind.IMAGE_SEARCH for tool, _ in tools.calls)
    assert gathered and not _pictures(gathered)
    assert not _pictures(_logs(trainer))


class _SameThumbnails(tiny.CannedTools):
    """Two thumbnails that every image search finds, drawn anew each time: equal images, different objects."""

    async def image_search(self, query: ImageQuery) -> Observation:
        await self._wait(ActionKind.IMAGE_SEARCH, str(query.url))
        hits = tuple(ImageHit(f"page {i}", thumbnail=Image.new("RGB", (56, 84), (i, 90, 9))) for i in range(2))
        return self._observe(Observation(tool=ActionKind.IMAGE_SEARCH, hits=hits))


def test_a_picture_is_processed_once_over_rollouts_and_training(tmp_path: Path) -> None:
    """Members of a group share the question's image; thumbnails come back in several turns, rollouts and steps."""
    tools = _SameThumbnails()
    trainer = tiny.trainer(
        FAMILY,
        tmp_path,
        tiny.tasks(2),
        tools=tools,
        max_steps=3,
        per_device_train_batch_size=2,
        beta=0.04,
        steps_per_generation=2,
        gradient_accumulation_steps=1,
    )
    processor, seen = trainer.processing_class.image_processor, []
    images = trainer.rollouter.protocol.chat.images
    process = images._processor

    def spy(images: Sequence[Image.Image], **options: Any) -> Any:
        seen.extend(image.tobytes() for image in images)
        return process(images=images, **options)

    images._processor = spy
    trainer.train()
    searches = [tool for tool, _ in tools.calls].count(ActionKind.IMAGE_SEARCH)
    assert searches > 2 and trainer.processing_class.image_processor is processor
    assert len(seen) == len(set(seen)) == images.processed == 2 + 2
