"""`protocol: direct` in a recipe: one turn, no search, and a key that would mean nothing is refused by its name."""

from pathlib import Path
from typing import Any

import pytest
from runs import DIRECT

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.recipe.recipe import Recipe, load_recipe
from mmsearch_trl.recipe.schedule import check_evaluations


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "made.yaml"
    path.write_text(DIRECT, encoding="utf-8")
    return path


def loaded(path: Path, overrides: dict[str, Any]) -> Recipe:
    recipe = load_recipe(path, overrides)
    recipe.validate(check_files=False)
    return recipe


@pytest.mark.parametrize(
    ("limits", "tokens"),
    [
        ({}, (2048, 8192)),
        ({"rollout.max_turns": 1}, (2048, 8192)),
        ({"rollout.max_turn_tokens": 4096}, (4096, 4096)),
        ({"rollout.max_response_tokens": 512}, (512, 512)),
        ({"rollout.max_turn_tokens": 64, "rollout.max_response_tokens": 128}, (64, 128)),
    ],
)
def test_a_rollout_is_one_turn_and_its_length_need_be_said_once(
    written: Path, limits: dict[str, Any], tokens: tuple[int, int]
) -> None:
    rollout = loaded(written, limits).rollout
    assert rollout.max_turns == 1 and (rollout.max_turn_tokens, rollout.max_response_tokens) == tokens


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rollout.max_turns", 2),
        ("rollout.image_search_limit", 1),
        ("rollout.text_search_limit", 0),
        ("rollout.image_search_first_turn_only", False),
        ("rollout.forced_answer", True),
        ("rollout.forced_answer_tokens", 9),
        ("rollout.on_overflow", "end"),
        ("rollout.max_observation_tokens", 64),
        ("rollout.max_search_failures_in_a_row", 3),
        ("search.timeout_s", 3),
        ("tools", [{"tool": "crop"}]),
        ("max_search_failure_share", 0.5),
        ("first_turn_prompt", "p.txt"),
        ("after_text_search_prompt", "p.txt"),
        ("reply_templates", "w.yaml"),
        ("reward.search_penalty", 0.1),
        ("reward.format_score", 0.1),
    ],
)
def test_a_key_of_searching_is_refused_by_its_name(written: Path, key: str, value: Any) -> None:
    with pytest.raises(UserError) as error:
        loaded(written, {key: value})
    assert key.partition(".")[0 if key.startswith("search.") else 2] in str(error.value) or key in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "metric", ["data_search_ratio", "data_text_failure_ratio", "data_searched/accuracy", "data_tool/crop/ratio"]
)
def test_no_best_model_is_chosen_by_a_number_of_searches(written: Path, metric: str) -> None:
    args = load_recipe(written, {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": metric}).trainer
    check_evaluations(args, ["data"])
    with pytest.raises(UserError, match="evaluations have no"):
        check_evaluations(args, ["data"], searches=False)


@pytest.mark.parametrize("metric", ["data_accuracy", "data_format"])
def test_no_best_model_is_chosen_by_answers_that_nobody_judges(written: Path, metric: str) -> None:
    args = load_recipe(written, {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": metric}).trainer
    check_evaluations(args, ["data"], searches=False)
    with pytest.raises(UserError, match=r"evaluations have no .*\(they have the name of the data and n, reward,"):
        check_evaluations(args, ["data"], searches=False, judged=False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mixture", [1.0]),
        ("max_samples", 3),
        ("max_prompt_length", 9),
        ("columns", {"messages": "chat"}),
        ("max_pixels", 9),
    ],
)
def test_how_rows_are_read_is_for_supervised_recipes_without_tools_alone(written: Path, key: str, value: Any) -> None:
    written.write_text("model_name_or_path: m\nprotocol: direct\ntrain_files: [r.jsonl]\nuse_cpu: true\nbf16: false\n")
    load_recipe(written, {key: value}, kind="sft").validate(check_files=False)
    with pytest.raises(UserError, match=f"{key} is of rows, and demonstrations of protocol mmsearch_r1 are"):
        load_recipe(written, {key: value, "protocol": "mmsearch_r1"}, kind="sft").validate(check_files=False)
