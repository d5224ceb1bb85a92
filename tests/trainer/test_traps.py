"""One test for each way in which TRL, or a search trainer built on it, goes wrong in silence."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig

from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.trainer.batch import generation


pytestmark = pytest.mark.slow

FAMILY, OTHER = tiny.qwen25(), tiny.qwen3()
FAMILIES = pytest.mark.parametrize("family", [FAMILY, OTHER], ids=lambda family: family.name)
NO_IMAGES = tiny.CannedTools(max_images=0)


def _rows(trainer: tiny.MMSearchGRPOTrainer) -> list[Any]:
    return list(trainer.train_dataset)


def _loss(trainer: tiny.MMSearchGRPOTrainer, output: dict[str, Any]) -> torch.Tensor:
    trainer.current_gradient_accumulation_steps = 1
    return trainer._compute_loss(trainer.model, output)


# What TRL drops or breaks in silence ---------------------------------------------------------------------------------


def test_ids_and_images_that_disagree_are_an_error_and_no_silent_drop(tmp_path: Path) -> None:
    trainer = tiny.trainer(FAMILY, tmp_path)
    trajectory = tiny.rollout_batch(trainer, _rows(trainer)).trajectories[0]
    chat = trainer.rollouter.protocol.chat
    short = tiny.Trajectory(
        task=trajectory.task, prompt=trajectory.prompt, prompt_ids=trajectory.prompt_ids[:-4], turns=trajectory.turns
    )
    pads = [i for i, token in enumerate(trajectory.prompt_ids) if token == chat.image_pad_id]
    short.prompt_ids = tuple(token for i, token in enumerate(trajectory.prompt_ids) if i != pads[0])
    with pytest.raises(AssertionError, match=trajectory.task.id):
        generation([short], chat, trainer.rollouter.limits, mask_failures=True)


def test_truncated_rollouts_are_left_out_of_the_loss_and_not_of_attention(tmp_path: Path) -> None:
    """TRL would hide them from attention, and their image pads from M-RoPE, which then breaks."""
    model = FAMILY.model()
    chat = FAMILY.protocol().chat
    model.lm_head = torch.nn.Linear(128, model.lm_head.out_features)
    model.lm_head.bias.data[chat.turn_end_id] = 5.0
    trainer = tiny.trainer(FAMILY, tmp_path, tiny.tasks(8), model=model, mask_truncated_completions=True)
    batch = tiny.rollout_batch(trainer, [dict(row) for row in trainer.train_dataset])
    truncated = [trajectory.truncated for trajectory in batch.trajectories]
    assert 0 < sum(truncated) < len(truncated)
    for i, trajectory in enumerate(batch.trajectories):
        count = len(trajectory.completion_ids)
        trained = batch.output["tool_mask"][i, :count].tolist()
        assert trained == ([0] * count if truncated[i] else trajectory.loss_mask)
        assert batch.output["completion_mask"][i].sum() == count
    assert batch.output["num_images"] == [len(trajectory.images) for trajectory in batch.trajectories]
    share = sum(truncated) / len(truncated)
    assert trainer._metrics["train"]["rollout/truncated"] == [pytest.approx(share)]
    assert batch.output["num_items_in_batch"] == (batch.output["tool_mask"] * batch.output["completion_mask"]).sum()
    assert _loss(trainer, batch.output).isfinite()


def test_a_sampled_image_pad_drops_no_image(tmp_path: Path) -> None:
    model = FAMILY.model()
    chat = FAMILY.protocol().chat
    model.lm_head = torch.nn.Linear(128, model.lm_head.out_features)
    model.lm_head.bias.data[chat.image_pad_id] = 50.0
    trainer = tiny.trainer(FAMILY, tmp_path, model=model)
    batch = tiny.rollout_batch(trainer, _rows(trainer))
    assert batch.output["num_images"] == [len(trajectory.images) for trajectory in batch.trajectories]
    assert len(batch.output["pixel_values"]) == batch.output["image_grid_thw"].prod(dim=1).sum()
    for trajectory in batch.trajectories:
        assert chat.vision_ids.isdisjoint(token for turn in trajectory.turns for token in turn.token_ids)


@FAMILIES
@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_micro_batch_of_text_alone_trains_within_a_batch_of_images(
    family: Any, batch_size: int, tmp_path: Path
) -> None:
    given = tiny.tasks(4, images=(0, 0, 1, 2))
    options: dict[str, Any] = {"per_device_train_batch_size": batch_size, "steps_per_generation": 8 // batch_size}
    trainer = tiny.trainer(
        family, tmp_path, given, tools=NO_IMAGES, gradient_accumulation_steps=8 // batch_size, **options
    )
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] > 0


@FAMILIES
def test_a_batch_without_any_image_search_trains(family: Any, tmp_path: Path) -> None:
    trainer = tiny.trainer(family, tmp_path, tools=NO_IMAGES)
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] > 0


@FAMILIES
def test_a_batch_without_any_image_trains(family: Any, tmp_path: Path) -> None:
    trainer = tiny.trainer(family, tmp_path, tiny.tasks(4, images=(0,)), tools=NO_IMAGES)
    batch = tiny.rollout_batch(trainer, _rows(trainer))
    assert "pixel_values" not in batch.output
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] > 0


def test_a_group_of_one_keeps_the_images_of_its_searches(tmp_path: Path) -> None:
    trainer = tiny.trainer(FAMILY, tmp_path)
    trainer.num_generations = 1
    batch = tiny.rollout_batch(trainer, _rows(trainer))
    assert max(batch.output["num_images"]) > 1
    assert torch.isfinite(_loss(trainer, batch.output))


def test_prompts_of_equal_length_train(tmp_path: Path) -> None:
    trainer = tiny.trainer(FAMILY, tmp_path, tiny.tasks(1) * 4)
    batch = tiny.rollout_batch(trainer, _rows(trainer))
    assert len({trajectory.prompt_ids for trajectory in batch.trajectories}) == 1
    assert torch.isfinite(_loss(trainer, batch.output))


# What is trained -----------------------------------------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_replies_images_headers_and_padding_move_no_logit(family: Any, beta: float, tmp_path: Path) -> None:
    """The gradient of the loss reaches the hidden states before sampled tokens through the LM head, and no others."""
    trainer = tiny.trainer(family, tmp_path, tiny.tasks(6, images=(0, 1, 2)), per_device_train_batch_size=6, beta=beta)
    batch = tiny.rollout_batch(trainer, _rows(trainer))
    states: list[torch.Tensor] = []

    def watch(module: Any, arguments: Any, output: Any) -> None:
        output.last_hidden_state.retain_grad()
        states.append(output.last_hidden_state)

    hook = trainer.model.model.register_forward_hook(watch)
    _loss(trainer, batch.output).backward()
    hook.remove()
    [state] = states
    assert state.grad is not None
    touched = state.grad.abs().sum(-1) > 0
    width = batch.output["prompt_ids"].shape[1]
    used = torch.cat([batch.output["prompt_mask"], batch.output["completion_mask"]], dim=1)
    place = used.cumsum(dim=1) - 1  # the tokens of a row are forwarded side by side, whatever padding lay between
    mask = batch.output["tool_mask"] * batch.output["completion_mask"]
    expected = torch.zeros_like(touched)
    for row, column in mask.nonzero().tolist():
        expected[row, place[row, width + column] - 1] = True
    advantaged = batch.output["advantages"] != 0
    assert advantaged.any()
    assert not (touched & ~expected).any()
    assert (touched == expected)[advantaged].all()


def test_the_text_of_replies_does_not_enter_the_loss(tmp_path: Path) -> None:
    """The log-prob of every token that was not sampled is exactly 0, in the old and reference passes too."""
    options: dict[str, Any] = {
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 2,
        "per_device_train_batch_size": 2,
    }
    trainer = tiny.trainer(FAMILY, tmp_path, beta=0.1, **options)
    output = tiny.rollout_batch(trainer, _rows(trainer)).output
    outside = (output["tool_mask"] * output["completion_mask"]) == 0
    for name in ("old_per_token_logps", "ref_per_token_logps"):
        assert not output[name][outside].any() and output[name][~outside].all(), name


def test_a_row_without_a_trained_token_gives_no_gradient_and_no_nan(tmp_path: Path) -> None:
    trainer = tiny.trainer(FAMILY, tmp_path)
    output = tiny.rollout_batch(trainer, _rows(trainer)).output
    output["tool_mask"] = torch.zeros_like(output["tool_mask"])
    loss = _loss(trainer, output)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())


def test_lora_leaves_the_weights_under_it_as_they_are(tmp_path: Path) -> None:
    model = FAMILY.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = tiny.trainer(FAMILY, tmp_path, model=model, peft_config=lora, max_steps=3)
    trainer.train()
    base = trainer.model.get_base_model().state_dict()
    kept = {name.replace(".base_layer", ""): value for name, value in base.items() if "lora_" not in name}
    assert kept.keys() == before.keys()
    assert all(value.equal(before[name]) for name, value in kept.items())
    moved = [p for name, p in trainer.model.named_parameters() if "lora_B" in name]
    assert moved and all(p.any() for p in moved)


def test_the_sampler_uses_the_adapter(tmp_path: Path) -> None:
    lora = LoraConfig(r=4, target_modules="all-linear", exclude_modules=r".*(visual|lm_head).*", task_type="CAUSAL_LM")
    trainer = tiny.trainer(FAMILY, tmp_path, peft_config=lora)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    batch = tiny.rollout_batch(trainer, _rows(trainer))
    values = tiny.padded_log_probs(trainer, batch.output)
    with trainer.model.disable_adapter():
        without = tiny.padded_log_probs(trainer, batch.output)
    for trajectory, row, bare in zip(batch.trajectories, values, without, strict=True):
        sampled = torch.tensor(trajectory.logprobs)
        torch.testing.assert_close(row[: len(sampled)], sampled, atol=1e-5, rtol=0)
        assert (bare[: len(sampled)] - sampled).abs().max() > 1e-2


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"top_p": 0.9}, "biases the policy ratio"),
        ({"top_k": 5}, "biases the policy ratio"),
        ({"min_p": 0.1}, "biases the policy ratio"),
        ({"repetition_penalty": 1.1}, "biases the policy ratio"),
        ({"log_multimodal": True}, "log_multimodal has no effect"),
        ({"num_generations": 3}, "divisible"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_option_that_breaks_training_is_refused(option: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.config(tmp_path, **option)


@pytest.mark.parametrize("name", ["tools", "rollout_func", "environment_factory"])
def test_trl_s_own_tool_loop_is_refused(name: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {name: [print] if name == "tools" else print}
    with pytest.raises(ValueError, match=f"{name} is TRL's own tool loop"):
        tiny.MMSearchGRPOTrainer(
            FAMILY.model(),
            tiny.by_letters,
            tiny.config(tmp_path),
            search=NO_IMAGES,
            train_dataset=tiny.dataset(tiny.tasks(4)),
            processing_class=FAMILY.processor,
            **arguments,
        )


def test_a_vision_model_without_its_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="processor of a vision-language model"):
        tiny.MMSearchGRPOTrainer(
            FAMILY.model(),
            tiny.by_letters,
            tiny.config(tmp_path),
            search=NO_IMAGES,
            train_dataset=tiny.dataset(tiny.tasks(4)),
            processing_class=FAMILY.processor.tokenizer,
        )


def test_inputs_of_another_model_family_are_refused(tmp_path: Path) -> None:
    trainer = tiny.trainer(FAMILY, tmp_path)
    ids = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="image_sizes"):
        trainer._get_per_token_logps_and_entropies(trainer.model, ids, ids, 2, image_sizes=ids)


def test_the_image_processor_is_trl_s_again_after_a_batch(tmp_path: Path) -> None:
    trainer = tiny.trainer(FAMILY, tmp_path)
    processor = FAMILY.processor.image_processor
    tiny.rollout_batch(trainer, _rows(trainer))
    assert FAMILY.processor.image_processor is processor


def test_each_picture_is_processed_once_per_rollout(tmp_path: Path) -> None:
    trainer = tiny.trainer(FAMILY, tmp_path, tiny.tasks(1) * 4)
    batch = tiny.rollout_batch(trainer, _rows(trainer))
    pictures = {image.key for trajectory in batch.trajectories for image in trajectory.images}
    assert trainer.rollouter.protocol.chat.images.processed == len(pictures) < sum(batch.output["num_images"])
    assert all(isinstance(image, ImageInput) for trajectory in batch.trajectories for image in trajectory.images)


def test_a_turn_ends_where_the_template_ends_it_whatever_the_checkpoint_calls_its_end(tmp_path: Path) -> None:
    """A base model's end of text is not the end of a turn; without the latter a turn runs into a made-up reply."""
    family = tiny.qwen25()
    family.processor.tokenizer.eos_token = "<|endoftext|>"
    trainer = tiny.trainer(family, tmp_path, limits=tiny.Limits(max_turns=2, max_turn_tokens=30))
    end = trainer.rollouter.protocol.chat.turn_end_id
    assert end not in trainer.eos_token_ids
    trainer.model.lm_head = torch.nn.Linear(128, trainer.model.lm_head.out_features)
    trainer.model.lm_head.bias.data[end] = 5.0
    trajectories = tiny.rollout_batch(trainer, _rows(trainer)).trajectories
    sampled = [turn.token_ids for trajectory in trajectories for turn in trajectory.turns]
    assert any(end in ids for ids in sampled)
    assert all(end not in ids[:-1] for ids in sampled)
