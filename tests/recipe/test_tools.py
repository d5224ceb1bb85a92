"""The `tools:` list: what is made of it, and how its mistakes are told."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.protocol.mmsearch import MMSearchProtocol
from mmsearch_trl.recipe.build import build_protocol
from mmsearch_trl.recipe.recipe import Recipe, load_recipe
from mmsearch_trl.rewards.mmsearch import RewardConfig
from mmsearch_trl.tools.crop import CropTool


WORLD = Path(__file__).parents[2] / "recipes" / "world" / "grpo.yaml"
TEXTS = (
    "first_turn_prompt",
    "after_image_search_prompt",
    "after_text_search_prompt",
    "forced_answer_prompt",
    "reply_templates",
)
"""Keys of files that the demo writes."""
CODE = """
class Shout:
    name = "shout"
    prompt = "Shout."

    def __init__(self, volume):
        if volume > 11:
            raise ValueError("that loud")

    def read(self, text): return None

    async def run(self, action, trajectory): ...

    def render(self, observation, task): return []

class Mute:
    name = "mute"

def nothing(): ...
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "loudly.py").write_text(CODE)
    yield
    sys.modules.pop("loudly", None)


def recipe(tools: Any, **overrides: Any) -> Recipe:
    return load_recipe(WORLD, {"tools": tools, "use_cpu": True, "bf16": False, **overrides})


def test_tools_reach_the_protocol_and_the_format_rule() -> None:
    tools = [{"tool": "crop", "limit": 3, "coordinates": "thousandths"}, {"tool": "loudly:Shout", "volume": 9}]
    made = recipe(tools, **dict.fromkeys(TEXTS))
    crop, shout = made.tools
    assert crop == CropTool(limit=3, coordinates="thousandths") and shout.name == "shout"
    assert isinstance(made.reward, RewardConfig) and made.reward.tools == ("crop", "shout")
    protocol = build_protocol(made, tiny.qwen25().processor)
    assert isinstance(protocol, MMSearchProtocol) and protocol.tools == made.tools


def test_without_the_key_there_are_none() -> None:
    made = load_recipe(WORLD, {"use_cpu": True, "bf16": False})
    assert made.tools == () and isinstance(made.reward, RewardConfig) and made.reward.tools == ()


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ({"tool": "crop"}, r"`tools` must be a list of mappings"),
        (["crop"], r"`tools\[0\]` must be a mapping with the key `tool`"),
        ([{"limit": 2}], r"`tools\[0\]` must be a mapping with the key `tool`"),
        ([{"tool": "corp"}], r"`tools\[0\].tool` must be crop, or package.module:Name .*'corp'.*crop"),
        ([{"tool": "crop", "limti": 2}], r"tools\[0\]: unknown key `limti`.*`limit`"),
        ([{"tool": "crop", "limit": "x"}], r"tools\[0\]: `limit` must be a whole number, got 'x'"),
        ([{"tool": "crop", "limit": 0}], r"tools\[0\]: limit is 0: it must be at least 1"),
        ([{"tool": "crop"}, {"tool": "crop"}], r"tools: two tools are named 'crop'"),
        ([{"tool": "loudly:Shuot"}], r"tools\[0\]\.tool: loudly has no `Shuot`.*`?Shout"),
        ([{"tool": "lowly:Shout"}], r"tools\[0\]\.tool: there is no module lowly"),
        ([{"tool": "loudly:Shout"}], r"tools\[0\]\.volume is missing: loudly:Shout needs it"),
        ([{"tool": "loudly:Shout", "volume": 1, "pitch": 2}], r"tools\[0\]\.pitch: loudly:Shout takes no `pitch`"),
        ([{"tool": "loudly:Shout", "volume": 12}], r"tools\[0\]\.tool: .* raised ValueError: that loud .*line 8"),
        ([{"tool": "loudly:Mute"}], r"tools\[0\]\.tool: loudly:Mute has no `prompt` and .*, which a tool needs"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_key(tools: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"^command line \(--tools\): {message}"):
        recipe(tools)


def test_tools_need_a_protocol_that_has_them_and_a_second_turn() -> None:
    crop = [{"tool": "crop"}]
    with pytest.raises(UserError, match="tools: protocol mmsearch_r1_upstream has none"):
        recipe(crop, protocol="mmsearch_r1_upstream").validate(check_files=False)
    with pytest.raises(UserError, match=r"tools: rollout\.max_turns is 1"):
        recipe(crop, **{"rollout.max_turns": 1}).validate(check_files=False)
