"""The private parts of TRL 1.16 that the trainer rests on. A failure here says what moved, before anything trains."""

import inspect
import re

import pytest
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from mmsearch_trl import versions
from mmsearch_trl.trainer.batch import Generation
from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer
from mmsearch_trl.versions import VersionError, check_versions


SIGNATURES = {
    "_generate": ["prompts"],
    "_generate_and_score_completions": ["inputs"],
    "_calculate_rewards": ["inputs", "prompts", "completions", "completion_ids_list"],
    "_compute_loss": ["model", "inputs"],
    "_get_per_token_logps_and_entropies": [
        *("model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"),
        *("compute_aux_loss", "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask"),
        *("spatial_shapes", "num_tiles", "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
    ],
    "_get_train_sampler": ["dataset"],
    "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
    "_load_best_model": [],
    "create_scheduler": ["num_training_steps", "optimizer"],
    "evaluate": ["eval_dataset", "ignore_keys", "metric_key_prefix"],
}
EIGHT = [
    *("prompt_ids_list", "completion_ids_list", "tool_mask_list", "completions"),
    *("sampling_per_token_logps_list", "extra_fields", "images", "tool_images"),
]


@pytest.mark.parametrize("name", SIGNATURES)
def test_an_overridden_method_has_the_known_parameters(name: str) -> None:
    assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters)[1:] == SIGNATURES[name]


@pytest.mark.parametrize("name", SIGNATURES)
def test_our_override_can_be_called_as_trl_s(name: str) -> None:
    theirs, ours = (inspect.signature(getattr(owner, name)) for owner in (GRPOTrainer, MMSearchGRPOTrainer))
    ours.bind(None, **dict.fromkeys(list(theirs.parameters)[1:]))
    shared = [parameter for parameter in ours.parameters if parameter in theirs.parameters]
    assert shared == [parameter for parameter in theirs.parameters if parameter in shared], "positions differ"


def test_generate_is_unpacked_into_the_eight_names_of_our_tuple() -> None:
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    [names] = re.findall(r"\(([^()]*)\) = self\._generate\(prompts\)", source)
    assert [name.strip() for name in names.split(",") if name.strip()] == EIGHT
    assert len(Generation._fields) == len(EIGHT)


def test_the_branch_that_reads_images_of_completions_is_chosen_as_we_choose_it() -> None:
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert source.count("if self.tools and any(imgs for imgs in tool_images) and self._is_vlm:") == 2
    assert 'self.processing_class.image_processor(images=flat_images, return_tensors="pt")' in source


def test_what_we_read_of_trl_s_private_state_is_there() -> None:
    source = inspect.getsource(GRPOTrainer)
    names = ("_is_vlm", "_metrics", "eos_token_ids", "_tokenizer", "pad_to_multiple_of", "_pending_extra_logs")
    for name in (
        *names,
        "_pending_metrics",
        "reward_weights",
        "scale_rewards",
        "multi_objective_aggregation",
        "_dist",
    ):
        assert f"self.{name}" in source, name
    assert "fused_lm_head" in inspect.getsource(add_fused_lm_head)


def test_trl_s_epsilon_is_the_one_that_we_replace() -> None:
    assert "(std_rewards + 1e-4)" in inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert MMSearchGRPOConfig.advantage_eps == 1e-4


def test_our_config_changes_the_two_defaults_that_it_says() -> None:
    ours, theirs = MMSearchGRPOConfig.__dataclass_fields__, GRPOConfig.__dataclass_fields__
    changed = {name for name, item in theirs.items() if ours[name].default != item.default}
    assert changed == {"vllm_importance_sampling_mode", "log_multimodal"} or changed == {
        "vllm_importance_sampling_mode"
    }


def test_a_trl_out_of_range_is_an_error_that_names_the_tested_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real = versions.version
    monkeypatch.setattr(versions, "version", lambda name: "1.17.0" if name == "trl" else real(name))
    with pytest.raises(VersionError, match=r"trl 1\.17\.0 is installed, but >=1\.16,<1\.17 is needed.*trl 1\.16\.0"):
        check_versions()
