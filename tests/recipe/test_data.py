import json
import logging
from pathlib import Path
from typing import Any

import pytest
from runs import grpo_arguments, write_jsonl

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.recipe.command_line import recipe_arguments
from mmsearch_trl.recipe.data import load_rows
from mmsearch_trl.recipe.recipe import Recipe, load_recipe
from mmsearch_trl.rewards.mmsearch import RewardConfig
from mmsearch_trl.world.protocol import build_protocol
from mmsearch_trl.world.tokenizer import build_processor


def recipe_of(home: Path, folder: Path, **changes: Any) -> Recipe:
    return load_recipe(*recipe_arguments(grpo_arguments(home, folder / "out", **changes)), kind="grpo")


def told(recipe: Recipe, file: Path, caplog: pytest.LogCaptureFixture) -> str:
    with caplog.at_level(logging.WARNING):
        load_rows(recipe, [str(file)], build_protocol(build_processor()), recipe.reward.scored_by)
    return caplog.text


def test_a_recipe_that_searches_by_image_says_that_no_question_has_one(
    world_home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"question": f"Who is it, {number}?", "answers": "she"} for number in range(3)]
    file = write_jsonl(tmp_path / "text.jsonl", rows)
    recipe = recipe_of(world_home, tmp_path)
    assert "text.jsonl: none of the 3 questions has an image, though the recipe searches by image" in told(
        recipe, file, caplog
    )


def test_one_picture_is_enough_and_a_search_by_text_needs_none(
    world_home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = world_home / "world"
    row = json.loads((world / "train.jsonl").read_text().splitlines()[0])
    text = {"question": "Who is it?", "answers": "she"}
    mixed = write_jsonl(tmp_path / "mixed.jsonl", [text, row | {"image": str(world / row["image"])}])
    assert "none of the" not in told(recipe_of(world_home, tmp_path), mixed, caplog)
    plain = write_jsonl(tmp_path / "plain.jsonl", [text])
    assert "none of the" not in told(recipe_of(world_home, tmp_path, **{"search.image": "null"}), plain, caplog)


def test_a_bad_row_says_how_it_may_be_left_out(world_home: Path, tmp_path: Path) -> None:
    rows = [{"question": "Who?", "answers": "she"}, {"question": "Which?", "answers": "A"}]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    protocol = build_protocol(build_processor())
    with pytest.raises(UserError, match=r"rows\.jsonl, line 2: .* cannot be scored.*`on_bad_row: skip` leaves bad"):
        load_rows(recipe_of(world_home, tmp_path), [str(file)], protocol, RewardConfig())
    assert (
        len(load_rows(recipe_of(world_home, tmp_path, on_bad_row="skip"), [str(file)], protocol, RewardConfig())) == 1
    )
