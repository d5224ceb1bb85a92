"""Crops in training: some steps of the real trainer on tiny models of both families."""

import hashlib
import json
from pathlib import Path

import pytest
import tiny
from servers import Trainers

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.tools.crop import Coordinates, CropTool
from mmsearch_trl.traces.files import trace_path
from mmsearch_trl.traces.records import TraceRecord
from mmsearch_trl.world.protocol import PROMPTS, TEMPLATES


FAMILIES: list[tuple[tiny.Family, Coordinates]] = [(tiny.qwen25(), "pixels"), (tiny.qwen3(), "thousandths")]
BOTH = pytest.mark.parametrize(("family", "coordinates"), FAMILIES, ids=[family.name for family, _ in FAMILIES])
LIMITS = Limits(max_turns=4, max_turn_tokens=5, max_response_tokens=900)


class CroppingProtocol(tiny.RestlessProtocol):
    """Reads crops, searches and answers out of any text, by its digest; some boxes are empty."""

    def read(self, text: str) -> Action:
        choice, left, top, side = hashlib.sha256(text.encode()).digest()[:4]
        if choice % 4 == 3:
            return super().read(text)
        left, top, side = left % 20, top % 20, side % 30
        return Action(ActionKind.TOOL, f"1 [{left}, {top}, {left + side}, {top + side}]", "crop")


def protocol(family: tiny.Family, coordinates: Coordinates) -> CroppingProtocol:
    tool = CropTool(limit=2, coordinates=coordinates, min_side=56)
    return CroppingProtocol(ChatEncoder(family.processor), PROMPTS, TEMPLATES, [tool])


def crops(trajectory: Trajectory) -> int:
    return sum(turn.action.tool == "crop" and bool(turn.reply_images) for turn in trajectory.turns)


@pytest.mark.slow
@BOTH
def test_the_trainer_learns_from_crops_and_tells_of_them(
    family: tiny.Family, coordinates: Coordinates, tmp_path: Path
) -> None:
    trainer = tiny.trainer(
        family,
        tmp_path,
        tiny.tasks(8),
        protocol=protocol(family, coordinates),
        limits=LIMITS,
        max_steps=3,
        save_traces=True,
        per_device_train_batch_size=8,
    )
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert any(not (old == new).all() for old, new in zip(before, trainer.model.parameters(), strict=True))
    [*steps, _] = trainer.state.log_history
    assert len(steps) == 3
    assert all(0.4 < step["tool/crop/ratio"] <= 1 and 0 < step["tool/crop/failure_rate"] < 1 for step in steps)
    assert all(step["search/ratio"] < step["tool/crop/ratio"] for step in steps)
    trainer.close()
    lines = trace_path(tmp_path, "train", 0).read_text().splitlines()
    turns = [turn for line in lines for turn in TraceRecord.from_json(line).turns if turn.action == "crop"]
    shown = [turn.observation for turn in turns if turn.observation and not turn.observation.failure]
    assert shown and all(observation.tool == "crop" for observation in shown)
    stored = {path.stem for path in (tmp_path / "traces" / "images").rglob("*.*")}
    assert all(hit.thumbnail in stored for observation in shown for hit in observation.hits)
    assert all(json.loads(str(turn.action_text).partition(" ")[2]) for turn in turns)


@BOTH
def test_log_probs_of_the_batch_are_those_of_each_trajectory_alone(
    family: tiny.Family, coordinates: Coordinates, build: Trainers, tmp_path: Path
) -> None:
    """Invariant 4, with crops among the images of a row, on every engine."""
    trainer = build(family, tmp_path, tiny.tasks(8), protocol=protocol(family, coordinates), limits=LIMITS)
    batch = tiny.rollout_batch(trainer, list(trainer.train_dataset)[:4])
    assert sum(map(crops, batch.trajectories)) >= 2
    values = tiny.padded_log_probs(trainer, batch.output)
    chat = trainer.rollouter.protocol.chat
    for row, trajectory in zip(values, batch.trajectories, strict=True):
        expected = tiny.alone(trainer.model, chat, trajectory)
        mask = [bool(bit) for bit in trajectory.loss_mask]
        assert (row[: len(mask)][mask] - expected[mask]).abs().max() < 1e-5
        sampled = [value for value, bit in zip(trajectory.logprobs, mask, strict=True) if bit]
        assert max(abs(a - float(b)) for a, b in zip(sampled, expected[mask], strict=True)) < 1e-4
