"""The tool of docs/tools.md does what the page says: a recipe makes it, a turn calls it, its answers are shown."""

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from mmsearch_trl.core.completion import SamplingParams
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.engine.scripted import ScriptedEngine
from mmsearch_trl.protocol.mmsearch import MMSearchProtocol
from mmsearch_trl.recipe.recipe import load_recipe
from mmsearch_trl.rewards.mmsearch import RewardConfig, score
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.loop import run_trajectory
from mmsearch_trl.rollout.toolbox import Toolbox


ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")
[YAML] = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
TOOL, USE = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
CALLS = ("30 ft", "3 parsecs", "1 km", "2 km")


@pytest.fixture
def used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page's second example leaves behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "my_module.py").write_text(TOOL)
    names: dict[str, Any] = {"processor": tiny.qwen25().processor}
    exec(TOOL, names)
    exec(USE, names)
    return names


def roll_out(protocol: MMSearchProtocol, turns: Sequence[str]) -> Trajectory:
    chat = protocol.chat
    engine = ScriptedEngine(
        [(*chat.tokenizer(text).input_ids, chat.turn_end_id) for text in turns], [chat.turn_end_id]
    )
    [task] = tiny.tasks(1)
    tools = Toolbox(tiny.CannedTools(), protocol.tools)
    limits = Limits(max_turns=len(turns), max_response_tokens=100_000)
    return asyncio.run(run_trajectory(task, engine, protocol, tools, limits, SamplingParams(max_tokens=1)))


def test_the_tool_has_about_forty_lines() -> None:
    assert len(TOOL.splitlines()) <= 48


def test_the_recipe_makes_the_tool(used: dict[str, Any]) -> None:
    overrides = {"use_cpu": True, "bf16": False, **yaml.safe_load(YAML)}
    crop, units = load_recipe(ROOT / "recipes" / "world" / "grpo.yaml", overrides).tools
    assert (crop.name, units.name) == ("crop", "units")
    assert "up to 3 times" in units.prompt
    for name in [name for name in sys.modules if name.startswith("my_package")]:
        del sys.modules[name]


def test_its_outcomes_reach_the_model(used: dict[str, Any]) -> None:
    protocol = used["protocol"]
    turns = [*(f"<reason>r</reason><units>{call}</units>" for call in CALLS), "<reason>r</reason><answer>new</answer>"]
    trajectory = roll_out(protocol, turns)
    replies = [protocol.chat.decode(turn.reply_ids) for turn in trajectory.turns]
    assert "Result of units: <information>30 ft = 9.144 m\n</information>" in replies[0]
    assert "Not converted: it takes a number and one of m, km, ft, mi." in replies[1]
    assert "1 km = 1000 m" in replies[2] and "no more conversions are allowed" in replies[3]
    assert "You may have a length converted" in protocol.chat.decode(trajectory.prompt_ids)
    parts = score(trajectory.responses, ["new"], used["reward"])
    assert (parts.reward, parts.format, parts.searches) == (1.0, 1.0, 0)
    assert score(trajectory.responses, ["new"], RewardConfig()).format == 0.0
