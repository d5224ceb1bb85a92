"""The private parts of TRL 1.16 that the trainer rests on. A failure here says what moved, before anything trains."""

import inspect
import re
from pathlib import Path

import pytest
import tiny
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import (
    add_fused_lm_head,
    split_pixel_values_by_grid,
    split_tensor_dict,
    unsplit_pixel_values_by_grid,
)

from mmsearch_trl.core import versions
from mmsearch_trl.core.errors import VersionError
from mmsearch_trl.core.versions import check_versions
from mmsearch_trl.trainer.batch import Generation
from mmsearch_trl.trainer.config import MMSearchGRPOConfig, _One
from mmsearch_trl.trainer.estimator_config import EstimatorConfig
from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer
from mmsearch_trl.trainer.micro_batches import _ROW_BY_ROW


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
    "_prepare_inputs": ["generation_batch"],
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


def test_micro_batches_are_cut_and_buffered_where_we_deal_them_anew() -> None:
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    for line in (
        "generation_batch = split_pixel_values_by_grid(generation_batch)",
        "generation_batch = shuffle_sequence_dict(generation_batch)",
        "generation_batches = split_tensor_dict(generation_batch, self.args.steps_per_generation)",
        "self._buffered_inputs = [unsplit_pixel_values_by_grid(batch) for batch in generation_batches]",
        "inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]",
    ):
        assert line in source
    for function in (split_pixel_values_by_grid, unsplit_pixel_values_by_grid):
        assert list(inspect.signature(function).parameters) == ["batch"]
    assert list(inspect.signature(split_tensor_dict).parameters) == ["tensor_dict", "num_chunks"]


def test_each_loss_type_is_normalised_as_we_believe() -> None:
    """Dealing rows anew rests on it; `entropy_mask` and the entropy bonus are the only other means over tokens."""
    source = inspect.getsource(GRPOTrainer._compute_loss)
    source = source[source.index('if self.loss_type in ["grpo", "sapo"]:') : source.index("# Log the metrics")]
    branches = re.findall(r"if self\.loss_type (?:in|==) (.+):\n(?:.*#.*\n)*((?: {12}.*\n)+)", source)
    normalised = {name: body for names, body in branches for name in re.findall(r'"(\w+)"', names)}
    assert set(normalised) == _ROW_BY_ROW | {"bnpo"}
    for name, divided in {
        **dict.fromkeys(("grpo", "sapo"), "((per_token_loss * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()"),
        "luspo": "(per_token_loss * mask).sum(-1).mean()",
        "dr_grpo": "(per_token_loss * mask).sum() / (per_token_loss.size(0) * self.max_completion_length)",
        **dict.fromkeys(("cispo", "dapo", "vespo"), 'inputs["num_items_in_batch"].clamp(min=1.0)'),
        "bnpo": "(per_token_loss * mask).sum() / mask.sum().clamp(min=1.0)",
    }.items():
        assert divided in normalised[name], name


def test_the_loss_reads_the_reference_after_it_asked_for_log_probs() -> None:
    source = inspect.getsource(GRPOTrainer._compute_loss)
    asked = source.index("self._get_per_token_logps_and_entropies(")
    assert source.count('inputs["ref_per_token_logps"]') == 1
    assert source.index('inputs["ref_per_token_logps"]') > asked


def test_setting_up_looks_at_use_vllm_where_we_know_of_it() -> None:
    """It is hidden meanwhile: the check that it guards is ours too, and the engine that it builds is not wanted."""
    source = inspect.getsource(GRPOTrainer.__init__)
    assert re.findall(r".*use_vllm\b(?!\.).*", source.replace("`use_vllm`", "")) == [
        "        self.use_vllm = args.use_vllm",
        '        if self.loss_type == "vespo" and self.use_vllm and self.vllm_importance_sampling_correction:',
        "        if self.use_vllm:",
    ]


def test_only_scored_tokens_are_projected_where_triton_runs() -> None:
    source = inspect.getsource(add_fused_lm_head)
    assert "compact = _use_triton(hidden_states.device)" in source
    assert "hidden_states[mask] if compact else" in source and "labels[mask] if compact else" in source


def test_trl_s_epsilon_is_the_one_that_we_replace() -> None:
    assert "(std_rewards + 1e-4)" in inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert MMSearchGRPOConfig.advantage_eps == 1e-4


def test_one_rollout_of_a_prompt_passes_the_one_check_that_trl_has(tmp_path: Path) -> None:
    """And `generation_batch_size`, which it must divide, is whatever the batch is."""
    assert inspect.getsource(GRPOConfig.__post_init__).count("self.num_generations < 2") == 1
    assert "num_generations < " not in inspect.getsource(GRPOTrainer)
    config = tiny.config(tmp_path, num_generations=1, estimator=EstimatorConfig(name="reinforce"))
    assert (config.num_generations, config.generation_batch_size) == (1, 4)
    assert type(config.num_generations) is int
    assert not _One(1) < 2 and _One(1) < 3 and not _One(1) < 1 and 8 % _One(1) == 0


def test_trl_keeps_the_advantages_of_one_batch_for_its_table() -> None:
    """Ours are added in the same number, and so TRL's fall out."""
    assert '"advantages": deque(maxlen=args.generation_batch_size)' in inspect.getsource(GRPOTrainer.__init__)


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
