"""The learning regression: from a stored warm start, a few dozen GRPO steps must teach *when* to search.

The warm start (`tests/fixtures/warm_start`, fp16) is world seed 0 after `make_warm_start` of `world/demo.py`. If the
world, its tokenizer or its traces change, store a new one:

    python tests/integration/store_warm_start.py
"""

from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText

from mmsearch_trl.evaluation.summary import GroupSummary
from mmsearch_trl.world.demo import evaluated_groups, make_trainer
from mmsearch_trl.world.files import write_world
from mmsearch_trl.world.tokenizer import build_processor
from mmsearch_trl.world.world import World


pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WARM_START = ROOT / "tests" / "fixtures" / "warm_start"


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, GroupSummary], dict[str, GroupSummary]]:
    """Before and after 40 steps of half a batch, with the recipe of `make demo` otherwise."""
    out = tmp_path_factory.mktemp("learning")
    write_world(World(0), out / "world")
    build_processor().save_pretrained(out / "warm_start")
    AutoModelForImageTextToText.from_pretrained(WARM_START, dtype="float32").save_pretrained(out / "warm_start")
    recipe, half = ROOT / "recipes" / "world" / "grpo.yaml", {"per_device_train_batch_size": 64}
    trainer = make_trainer(recipe, out, seed=0, max_steps=40, **half)
    before = evaluated_groups(trainer.evaluate())
    trainer.train()
    return before, evaluated_groups(trainer.evaluate())


def test_the_warm_start_leaves_the_decision_to_search_open(
    evaluations: tuple[dict[str, GroupSummary], dict[str, GroupSummary]],
) -> None:
    before, _ = evaluations
    for group in before.values():
        assert group.search_ratio is not None and 0.25 <= group.search_ratio <= 0.75
        assert (group.format or 0.0) >= 0.97


def test_known_emblems_are_answered_without_a_search(
    evaluations: tuple[dict[str, GroupSummary], dict[str, GroupSummary]],
) -> None:
    _, after = evaluations
    assert (after["known"].accuracy or 0.0) >= 0.93
    known = after["known"].search_ratio
    assert known is not None and known <= 0.15


def test_never_seen_emblems_are_looked_up(
    evaluations: tuple[dict[str, GroupSummary], dict[str, GroupSummary]],
) -> None:
    before, after = evaluations
    assert (after["held_out"].search_ratio or 0.0) >= 0.85
    right_before, right = (side["held_out"].accuracy or 0.0 for side in (before, after))
    assert right >= max(0.85, right_before + 0.2)
    assert (after["held_out"].format or 0.0) >= 0.97
