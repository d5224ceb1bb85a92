"""What the trainer refuses before it does anything."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from datasets import Dataset

from mmsearch_trl.core.errors import EngineError
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.search.runtime import SearchRuntime
from mmsearch_trl.trainer.checks import check_arguments, check_enough_rows, check_model, check_pictures
from mmsearch_trl.trainer.config import MMSearchGRPOConfig


def _config(folder: Path, beta: float = 0.0) -> MMSearchGRPOConfig:
    return MMSearchGRPOConfig(
        str(folder), use_cpu=True, bf16=False, per_device_train_batch_size=8, num_generations=4, beta=beta
    )


def test_data_smaller_than_a_batch_are_refused_with_both_numbers(tmp_path: Path) -> None:
    config = _config(tmp_path)
    check_enough_rows(Dataset.from_dict({"prompt": ["a", "b"]}), config)
    with pytest.raises(ValueError, match=r"takes 2 questions .* hold 1"):
        check_enough_rows(Dataset.from_dict({"prompt": ["a"]}), config)


def test_a_reference_model_needs_a_model_on_disk_unless_an_adapter_is_trained(tmp_path: Path) -> None:
    unsaved = SimpleNamespace(config=SimpleNamespace(_name_or_path=""))
    with pytest.raises(ValueError, match="save this model first"):
        check_arguments(unsaved, _config(tmp_path, beta=0.1), {})
    check_arguments(unsaved, _config(tmp_path, beta=0.1), {"peft_config": object()})
    check_arguments("some/model", _config(tmp_path, beta=0.1), {})
    check_arguments(unsaved, _config(tmp_path), {})


def test_trls_own_tool_loop_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rollout_func"):
        check_arguments("some/model", _config(tmp_path), {"rollout_func": print})


def test_weights_gathered_layer_by_layer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ds3_gather_for_generation"):
        MMSearchGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, ds3_gather_for_generation=False)


def test_the_loss_that_balances_experts_is_refused_before_the_first_rollout(tmp_path: Path) -> None:
    config = SimpleNamespace(model_type="qwen3_vl_moe", is_encoder_decoder=False, get_text_config=lambda: None)
    model: Any = SimpleNamespace(config=config)
    with pytest.raises(ValueError, match=r"router_aux_loss_coef: .* set it to 0"):
        check_model(model, has_processor=True, has_auxiliary_loss=True)


@pytest.mark.parametrize(
    ("images", "limits", "most", "refused"),
    [
        (1, {}, 6, None),
        (1, {}, 5, "takes 5 pictures in a prompt, and a rollout may hold 6 (1 of the question, 5 of image searches)"),
        (2, {"image_search_limit": 0}, 1, "takes 1 pictures in a prompt, and a rollout may hold 2"),
        (2, {"image_search_limit": 0}, 2, None),
        (2, {"max_turns": 1}, 2, None),
        (0, {}, 1, None),
        (3, {}, None, None),
    ],
)
def test_an_engine_that_takes_too_few_pictures_is_refused_before_the_first_rollout(
    images: int, limits: dict[str, Any], most: int | None, refused: str | None
) -> None:
    rows = tiny.dataset(tiny.tasks(4, images=(0, images)))
    arguments = (rows, Limits(**limits), SearchRuntime(None, None, k_image=5), most)
    if refused is None:
        check_pictures(*arguments)
        return
    with pytest.raises(EngineError, match=re.escape(refused)):
        check_pictures(*arguments)
