"""The parts that a recipe names, and what does not go together."""

from pathlib import Path
from typing import Any

import pytest
import tiny
from runs import DIRECT
from trl import chat_template_utils

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.recipe.build import build_protocol
from mmsearch_trl.recipe.recipe import load_recipe


THINKING = (Path(chat_template_utils.__file__).parent / "chat_templates" / "qwen3_5_think.jinja").read_text()


@pytest.mark.parametrize("rule", ["math", "r1_v", "sokoban", "answer"])
@pytest.mark.parametrize("always", [True, False])
def test_a_template_that_always_thinks_leaves_nothing_to_be_paid(rule: str, always: bool, tmp_path: Path) -> None:
    """One that can be asked not to think is."""
    (tmp_path / "made.yaml").write_text(DIRECT)
    recipe = load_recipe(tmp_path / "made.yaml", {"reward.rule": rule})
    processor: Any = tiny.qwen3().processor
    template = THINKING.replace("enable_thinking", "never_given") if always else THINKING
    processor.chat_template = processor.tokenizer.chat_template = template
    if always and rule != "answer":
        with pytest.raises(UserError, match=f"org/model begins every turn with <think>.* reward.rule: {rule} pays"):
            build_protocol(recipe, processor)
    else:
        assert build_protocol(recipe, processor).chat.opens_thinking is always
