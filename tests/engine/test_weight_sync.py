"""What is sent to a sampler is what the model computes with, and sending it changes not one bit of the model."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from forks import TWO, Forks
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import PreTrainedModel

from mmsearch_trl.engine.weight_sync import adapter_weights, native_adapter_obstacle, sampler_weights


LANGUAGE = r".*language_model.*_proj"


@pytest.fixture(params=tiny.FAMILIES)
def family(request: pytest.FixtureRequest) -> tiny.Family:
    return tiny.FAMILIES[request.param]()


def lora(model: PreTrainedModel, **options: Any) -> PeftModel:
    """An adapter with weights of its own: PEFT starts with a product of zero."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": LANGUAGE} | options
    adapted = get_peft_model(model, LoraConfig(**options))
    fill(adapted)
    return adapted


def fill(model: PeftModel, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name or ".modules_to_save." in name:
            parameter.data.normal_(std=0.05, generator=generator)


def saved(model: PreTrainedModel, folder: Path) -> dict[str, torch.Tensor]:
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


def test_a_whole_model_is_sent_as_it_is_saved(family: tiny.Family, tmp_path: Path) -> None:
    model = family.model()
    sent = list(sampler_weights(model))
    assert len(sent) == len(dict(sent))
    assert_same(dict(sent), saved(model, tmp_path))


@pytest.mark.parametrize("name", tiny.MIXTURES)
def test_experts_are_sent_as_they_are_saved(name: str, tmp_path: Path) -> None:
    """Within the model, they are one tensor; in files, that has its axes turned, or each expert has tensors."""
    model = lora(tiny.MIXTURES[name]().model(), target_modules=r".*self_attn\.[qv]_proj")
    sent = list(sampler_weights(model))
    assert len(sent) == len(dict(sent))
    assert_same(dict(sent), saved(model.merge_and_unload(), tmp_path))


def test_a_reloaded_model_is_sent_under_the_same_names(family: tiny.Family, tmp_path: Path) -> None:
    model = family.model()
    expected = saved(model, tmp_path)
    assert_same(dict(sampler_weights(type(model).from_pretrained(tmp_path))), expected)


def test_weights_that_are_not_tied_are_both_sent(tmp_path: Path) -> None:
    family = tiny.qwen3()
    config = family.model().config
    config.tie_word_embeddings = False
    model = type(family.model())(config)
    assert_same(dict(sampler_weights(model)), saved(model, tmp_path))
    assert "lm_head.weight" in dict(sampler_weights(model))


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"target_modules": r".*(_proj|qkv|fc\d|mlp\.[02])"}])
def test_merged_weights_are_those_of_pefts_own_merge(
    family: tiny.Family, tmp_path: Path, options: dict[str, Any]
) -> None:
    model = lora(family.model(), **options)
    sent = dict(sampler_weights(model))
    expected = saved(model.merge_and_unload(), tmp_path)
    assert sent.keys() == expected.keys()
    assert all(torch.allclose(sent[name], expected[name], rtol=0, atol=1e-7) for name in sent)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sending_many_times_changes_no_bit_of_the_model(family: tiny.Family, dtype: torch.dtype) -> None:
    model = family.model()
    model.to(dtype)  # pyright: ignore[reportArgumentType]  (it is wrapped, and loses `self`)
    model = lora(model, target_modules=r".*_proj", modules_to_save=["merger"])
    before = snapshot(model)
    first = {name: tensor.clone() for name, tensor in sampler_weights(model)}
    for _ in range(20):
        for _ in sampler_weights(model):
            pass
    assert_same(snapshot(model), before)
    assert_same(dict(sampler_weights(model)), first)
    assert {tensor.dtype for tensor in first.values()} == {dtype}


def test_a_bf16_weight_is_rounded_once() -> None:
    whole = tiny.qwen25().model()
    whole.to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    model = lora(whole)
    sent = dict(sampler_weights(model))
    base: Any = model.get_base_model()
    layer = base.model.language_model.layers[0].self_attn.q_proj
    exact = layer.base_layer.weight.float() + 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert torch.equal(sent["model.layers.0.self_attn.q_proj.weight"], exact.to(torch.bfloat16))


def test_whole_modules_that_are_trained_replace_the_old_ones(family: tiny.Family, tmp_path: Path) -> None:
    model = lora(family.model(), modules_to_save=["merger"])
    sent = dict(sampler_weights(model))
    with model.disable_adapter():
        base = dict(sampler_weights(model))
    expected = saved(model.merge_and_unload(), tmp_path)
    assert sent.keys() == base.keys() == expected.keys()
    merger = [name for name in sent if ".merger." in f".{name}"]
    assert merger and all(torch.equal(sent[name], expected[name]) for name in merger)
    assert not any(torch.equal(sent[name], base[name]) for name in merger)


def test_all_active_adapters_are_added(tmp_path: Path) -> None:
    model = lora(tiny.qwen25().model())
    model.add_adapter("second", LoraConfig(r=2, lora_alpha=2, target_modules=r".*layers\.1\.mlp.*_proj"))
    fill(model)
    one = dict(sampler_weights(model))
    model.base_model.set_adapter(["default", "second"])  # pyright: ignore[reportCallIssue]
    both = dict(sampler_weights(model))
    expected = saved(model.merge_and_unload(adapter_names=["default", "second"]), tmp_path)
    assert all(torch.allclose(both[name], expected[name], rtol=0, atol=1e-7) for name in expected)
    assert {name for name in one if not torch.equal(one[name], both[name])} == {
        name for name in one if "layers.1.mlp." in name and name.endswith("proj.weight")
    }


def test_an_adapter_that_is_merged_already_is_not_added_again() -> None:
    model = lora(tiny.qwen25().model())
    expected = dict(sampler_weights(model))
    model.merge_adapter()
    merged = dict(sampler_weights(model))
    assert all(torch.allclose(merged[name], expected[name], rtol=0, atol=1e-7) for name in expected)


def test_activation_checkpointing_leaves_the_names() -> None:
    model: Any = tiny.qwen25().model()
    names = list(dict(sampler_weights(model)))
    layers = model.model.language_model.layers
    layers[1] = checkpoint_wrapper(layers[1])
    assert list(dict(sampler_weights(model))) == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "DoraLinearVariant"),
        ({"lora_bias": True, "target_modules": [".*q_proj", "q_proj"]}, "with biases"),
        ({"modules_to_save": ["lm_head"]}, "one weight in the sampler"),
        ({"target_modules": ["embed_tokens"]}, "one weight in the sampler"),
        ({"trainable_token_indices": [1, 2]}, "TrainableTokensWrapper"),
        ({"target_modules": [], "target_parameters": ["q_proj.weight"]}, "ParamWrapper"),
    ],
)
def test_what_plain_weights_cannot_express_is_an_error(options: dict[str, Any], message: str) -> None:
    model = lora(tiny.qwen25().model(), **options)
    with pytest.raises(ValueError, match=message):
        list(sampler_weights(model))


def test_a_wrapped_model_is_an_error() -> None:
    with pytest.raises(TypeError, match="unwrapped transformers model"):
        list(sampler_weights(nn.DataParallel(tiny.qwen25().model())))


def test_an_adapter_is_sent_as_peft_saves_it(family: tiny.Family, tmp_path: Path) -> None:
    model = lora(family.model())
    model.save_pretrained(str(tmp_path))
    assert_same(dict(adapter_weights(model)), load_file(tmp_path / "adapter_model.safetensors"))


def test_an_adapter_for_the_language_model_has_no_obstacle(family: tiny.Family) -> None:
    assert native_adapter_obstacle(lora(family.model()), max_rank=4) is None
    assert native_adapter_obstacle(lora(family.model(), use_rslora=True, init_lora_weights="gaussian")) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"modules_to_save": ["merger"]}, "no whole modules (modules_to_save: merger)"),
        ({"bias": "all"}, "no trained biases"),
        ({"use_dora": True}, "plain LoRA only (DoraLinearVariant)"),
        ({"target_modules": r".*qkv"}, "model.visual.blocks.0.attn.qkv (of 2) is elsewhere"),
        ({"target_modules": r".*merger.mlp.[02]"}, "model.visual.merger.mlp.0 (of 2) is elsewhere"),
        ({"target_modules": ["lm_head", "q_proj"]}, "lm_head is elsewhere"),
        ({"target_modules": ["embed_tokens"]}, "model.language_model.embed_tokens is none"),
        ({"rank_pattern": {".*q_proj": 2}}, "one rank and one alpha"),
        ({"alpha_pattern": {".*q_proj": 2}}, "one rank and one alpha"),
        ({"lora_bias": True, "target_modules": ["q_proj"]}, "no adapter biases"),
        ({"trainable_token_indices": [1]}, "no single trained embeddings"),
        ({"target_modules": [], "target_parameters": ["q_proj.weight"]}, "no adapters on bare parameters"),
        ({"init_lora_weights": "pissa"}, "initialisation changed the base weights"),
    ],
)
def test_what_vllm_would_refuse_or_compute_otherwise_is_named(options: dict[str, Any], words: str) -> None:
    model = lora(tiny.qwen25().model(), **options)
    assert words in str(native_adapter_obstacle(model))
    assert "outside of the adapter" not in str(native_adapter_obstacle(model))
    with pytest.raises(ValueError, match="cannot serve the adapter"):
        list(adapter_weights(model))


def test_the_samplers_highest_rank_is_an_obstacle() -> None:
    model = lora(tiny.qwen25().model(), r=16)
    assert native_adapter_obstacle(model, max_rank=16) is None
    assert native_adapter_obstacle(model, max_rank=8) == "rank 16 is over the sampler's highest, 8"


def test_states_that_vllm_would_not_see_are_named() -> None:
    model = tiny.qwen25().model()
    assert native_adapter_obstacle(model) == "the model has no adapter"
    adapted = lora(model)
    base: Any = adapted.get_base_model()
    base.model.visual.merger.requires_grad_(True)
    assert "outside of the adapter are trained" in str(native_adapter_obstacle(adapted))
    base.model.visual.merger.requires_grad_(False)
    adapted.merge_adapter()
    assert "merged into the base weights" in str(native_adapter_obstacle(adapted))
    adapted.unmerge_adapter()
    assert native_adapter_obstacle(adapted) is None
    adapted.add_adapter("second", LoraConfig(r=2, target_modules=LANGUAGE))
    adapted.base_model.set_adapter(["default", "second"])  # pyright: ignore[reportCallIssue]
    assert "2 are active" in str(native_adapter_obstacle(adapted))


def test_zero_3_is_gathered_one_layer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's own part is played by a stand-in that fills and empties parameters as ZeRO-3 does."""
    model = lora(tiny.qwen25().model())
    expected = {name: tensor.clone() for name, tensor in sampler_weights(model)}
    zero = FakeZero(model)
    monkeypatch.setitem(sys.modules, "deepspeed", zero)
    sent = {name: tensor.clone() for name, tensor in sampler_weights(model)}
    assert_same(sent, expected)
    assert zero.most_at_once == 3, "a base weight and its two matrices"
    assert all(parameter.numel() == 0 for parameter in model.parameters())
    adapter = {name: tensor.clone() for name, tensor in adapter_weights(model)}
    assert all(tensor.numel() for tensor in adapter.values())


class FakeZero:
    """`deepspeed`, as far as gathering goes."""

    def __init__(self, model: nn.Module) -> None:
        self.zero = self
        self.most_at_once = 0
        parameters: list[Any] = list(model.parameters())
        for number, parameter in enumerate(parameters):
            parameter.ds_id = number
            parameter.whole = parameter.data
            parameter.data = torch.empty(0)

    @contextmanager
    def GatheredParameters(self, parameters: list[Any]) -> Iterator[None]:
        self.most_at_once = max(self.most_at_once, len(parameters))
        for parameter in parameters:
            parameter.data = parameter.whole
        yield
        for parameter in parameters:
            parameter.data = torch.empty(0)


@pytest.mark.slow
def test_weights_sharded_by_fsdp2_are_sent_whole(forks: Forks, tmp_path: Path) -> None:
    forks.launch(TWO, str(Path(__file__).with_name("weight_sync_worker.py")), str(tmp_path), folder=tmp_path)
    for part, file in (("weights", "model.safetensors"), ("adapter", "adapter_model.safetensors")):
        sent, whole = load_file(tmp_path / part / "1" / file), load_file(tmp_path / f"{part}.safetensors")
        assert sent.keys() == whole.keys()
        assert all(torch.allclose(sent[name], whole[name], rtol=0, atol=1e-7) for name in whole)
