"""`freeze_prefix` and `freeze_vision`: names as users write them, on models as the trainers hold them."""

import copy
from collections.abc import Sequence

import pytest
import tiny
from peft import LoraConfig, get_peft_model
from torch import nn

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.trainer.freezing import freeze, frozen_parameters


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny.qwen25().model()


def names(model: nn.Module, *prefixes: str) -> set[str]:
    return {name for name, _ in frozen_parameters(model, prefixes)}


@pytest.mark.parametrize("family", tiny.FAMILIES | tiny.MIXTURES)
def test_every_family_has_a_vision_tower_of_that_name(family: str) -> None:
    model = (tiny.FAMILIES | tiny.MIXTURES)[family]().model()
    freeze(model, [], freeze_vision=True)
    left = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert left == {id(parameter) for parameter in model.get_decoder().parameters()}


@pytest.mark.parametrize("prefix", ["visual", "visual.", "model.visual", "model.visual."])
def test_the_vision_tower_goes_by_each_of_its_names(prefix: str, model: nn.Module) -> None:
    tower = {name for name, _ in model.named_parameters() if ".visual." in name}
    assert names(model, prefix) == tower == {name for name, _ in frozen_parameters(model, [], freeze_vision=True)}


@pytest.mark.parametrize(
    "prefix", ["layers.1", "model.layers.1", "language_model.layers.1", "model.language_model.layers.1"]
)
def test_a_layer_goes_by_each_of_its_names_and_is_no_other_layer(prefix: str) -> None:
    layers = nn.ModuleDict({f"{number}": nn.Linear(1, 1) for number in (1, 10, 11)})
    model = nn.ModuleDict({"model": nn.ModuleDict({"language_model": nn.ModuleDict({"layers": layers})})})
    assert names(model, prefix) == {f"model.language_model.layers.1.{part}" for part in ("weight", "bias")}


def test_a_tied_head_is_frozen_by_either_of_its_names(model: nn.Module) -> None:
    model = copy.deepcopy(model)
    freeze(model, ["lm_head"])
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["model.language_model.embed_tokens.weight"]


def test_adapters_within_a_frozen_part_are_frozen(model: nn.Module) -> None:
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=["q_proj", "qkv"]))  # pyright: ignore[reportArgumentType]
    freeze(adapted, ["visual"])
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trained and all(".language_model." in name and "lora_" in name for name in trained)


@pytest.mark.parametrize(
    ("prefixes", "vision", "message"),
    [
        (
            ["vizual"],
            False,
            r"freeze_prefix: 'vizual' is the beginning of no parameter's name; did you mean `visual`\?",
        ),
        (["visual", "layers.99"], False, r"freeze_prefix: 'layers.99' is the beginning of no"),
        (["layers.0.self_attn.q"], False, "is the beginning of no"),  # whole parts of a name
        (["."], False, "is the beginning of no"),
        (["visual", "language_model", "lm_head"], False, "freeze_prefix: nothing is left to train"),
        (["language_model"], True, "freeze_vision and freeze_prefix: nothing is left to train"),
    ],
)
def test_what_freezes_nothing_or_all_is_refused(
    prefixes: Sequence[str], vision: bool, message: str, model: nn.Module
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        freeze(copy.deepcopy(model), prefixes, freeze_vision=vision)
    assert len(str(refused.value)) < 600


def test_a_language_model_has_no_vision_tower() -> None:
    with pytest.raises(UserError, match="freeze_vision: the model has no vision tower"):
        freeze(nn.Linear(2, 2), [], freeze_vision=True)
