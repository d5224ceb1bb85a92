"""`mmsearch doctor --recipe` computes what docs/hardware.md states."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
from transformers import GPT2Config

from mmsearch_trl.commands.main import main
from mmsearch_trl.models.published import published_config
from mmsearch_trl.recipe.memory import GIB, Demand, Memory, Sharding, key_value_bytes, memory_of
from mmsearch_trl.recipe.model_config import RecipeModelConfig
from mmsearch_trl.recipe.model_shape import Layers, ModelShape, model_shape


PAGE = Path(__file__).parents[2] / "docs" / "hardware.md"
NAMES = ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen3-VL-8B-Instruct")
LORA: dict[str, Any] = {"use_peft": True, "lora_r": 64, "lora_target_modules": [".*language_model.*_proj"]}


def shape(name: str, **keys: Any) -> ModelShape:
    given: dict[str, Any] = {"model_name_or_path": name, "dtype": "float32"} | keys
    return model_shape(RecipeModelConfig(**given), published=True)


@pytest.fixture(scope="module")
def full() -> list[ModelShape]:
    return [shape(name) for name in NAMES]


@pytest.fixture(scope="module")
def adapted() -> list[ModelShape]:
    return [shape(name, **(LORA | {"dtype": "bfloat16"})) for name in NAMES]


def row(label: str) -> list[float]:
    """The numbers of a row of the page's tables, one for each model; of a sum its result."""
    [line] = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {label} |")]
    cells = [cell for cell in line.split("|")[2:-1] if re.search(r"\d", cell)][-3:]
    return [float(re.findall(r"[\d.]+", cell)[-1]) for cell in cells]


def demand(**changes: Any) -> Demand:
    asked: dict[str, Any] = {
        "states": 2,
        "state_bytes": None,
        "reference": False,
        "checkpointing": True,
        "compute_bytes": 2,
        "rows": 8,
        "tokens": 4096,
        "pixels": 2 * 672 * 672,
        "rollouts": 16,
    }
    return Demand(**(asked | changes))


def memories(shapes: list[ModelShape], sharding: Sharding, **changes: Any) -> list[Memory]:
    return [memory_of(each, demand(**changes), sharding, 8) for each in shapes]


def rounded(numbers: Any, digits: int = 1) -> list[float]:
    return [round(number, digits) for number in numbers]


def test_parameters(full: list[ModelShape], adapted: list[ModelShape]) -> None:
    assert rounded((each.base.count / 1e9 for each in full), 2) == row("parameters P")
    assert rounded((each.trained.count / 1e9 for each in adapted), 3) == row(
        "adapter A (`lora_r: 64`, every linear layer of the language model)"
    )
    assert rounded(each.base.count * 2 / GIB for each in full) == row("2 bytes x P")


@pytest.mark.parametrize(
    ("label", "sharding"),
    [
        ("DDP (`ddp.yaml`)", Sharding.NONE),
        ("ZeRO-2 (`zero2.yaml`)", Sharding.ZERO2),
        ("ZeRO-3 (`zero3.yaml`), FSDP2 (`fsdp2.yaml`)", Sharding.ZERO3),
        ("ZeRO-3 (`zero3.yaml`), FSDP2 (`fsdp2.yaml`)", Sharding.FSDP2),
    ],
)
def test_full_training(label: str, sharding: Sharding, full: list[ModelShape]) -> None:
    assert rounded(each.states for each in memories(full, sharding)) == row(label)


def test_lora(adapted: list[ModelShape]) -> None:
    found = memories(adapted, Sharding.NONE, reference=True)
    assert rounded(each.states for each in found) == row("LoRA, base in bfloat16")
    assert [each.reference for each in found] == [0, 0, 0]


def test_the_reference_model(full: list[ModelShape]) -> None:
    """2 P with ZeRO-2, 2 P / N with ZeRO-3, 4 P in float32 without DeepSpeed, 4 P / N with FSDP2."""
    for sharding, each in ((Sharding.NONE, 4), (Sharding.ZERO2, 2), (Sharding.ZERO3, 0.25), (Sharding.FSDP2, 0.5)):
        found = memories(full, sharding, reference=True)
        assert [m.reference for m in found] == [each * s.base.count / GIB for s in full]
    seven = memories(full, Sharding.ZERO2, reference=True)[1]
    assert f"{seven.states:.1f} GiB before the first activation" in " ".join(PAGE.read_text().split())


def test_activations_and_caches(full: list[ModelShape]) -> None:
    for label, rows, tokens in (
        ("2 rows x 4,096 tokens", 2, 4096),
        ("8 rows x 4,096 tokens", 8, 4096),
        ("8 rows x 12,288 tokens, the longest that the recipes allow", 8, 12288),
    ):
        found = memories(full, Sharding.NONE, rows=rows, tokens=tokens)
        assert rounded(each.activations for each in found) == row(label)
    vision = [each.vision for each in memories(full, Sharding.NONE)]
    assert rounded(vision) == [2.8, 2.8, 1.6] and "2.8 GiB and 1.6 GiB for 8" in PAGE.read_text()
    assert rounded(each.cache for each in memories(full, Sharding.NONE)) == row("16 rollouts x 4,096 tokens")
    longest = memories(full, Sharding.NONE, tokens=12288)
    assert rounded(each.cache for each in longest) == row("16 rollouts x 12,288 tokens")
    assert [round(key_value_bytes(each.language) / 1000) for each in full] == [37, 57, 147]


def test_what_is_gathered_while_rollouts_are_written(full: list[ModelShape]) -> None:
    for sharding in (Sharding.ZERO3, Sharding.FSDP2):
        assert [m.gathered for m in memories(full, sharding)] == [2 * s.parameters / GIB for s in full]
        assert [m.gathered + m.cache for m in memories(full, sharding, rollouts=0)] == [0, 0, 0]
    assert [m.gathered for m in memories(full, Sharding.ZERO2)] == [0, 0, 0]


@pytest.mark.parametrize("name", tiny.FAMILIES | tiny.MIXTURES)
def test_every_family_has_a_shape(name: str, tmp_path: Path) -> None:
    """Of all: width 64, two heads of 32; a vision tower two or three layers deep."""
    model = (tiny.FAMILIES | tiny.MIXTURES)[name]().model()
    model.config.save_pretrained(tmp_path)
    found = model_shape(RecipeModelConfig(model_name_or_path=str(tmp_path), dtype="float32"), freeze_vision=True)
    tower = {name: parameter for name, parameter in model.named_parameters() if ".visual." in name}
    seen = sum(parameter.numel() for parameter in tower.values())
    assert (found.frozen.count, found.trained.count) == (seen, model.num_parameters() - seen)
    text = model.config.get_text_config()
    mlp = {"qwen3-vl-moe": 2 * 16, "qwen3.5-moe": 3 * 16}.get(name, getattr(text, "intermediate_size", None))
    caching = 1 if "3.5" in name else text.num_hidden_layers
    assert (found.language.mlp, found.language.caching) == (mlp, caching)
    embed = tower["model.visual.patch_embed.proj.weight"]
    assert found.vision is not None
    assert (found.vision.width, found.vision.patch) == (embed.shape[0], embed.shape[-1])


def test_a_language_model_that_names_its_parts_otherwise_has_one(tmp_path: Path) -> None:
    GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64).save_pretrained(tmp_path)
    found = model_shape(RecipeModelConfig(model_name_or_path=str(tmp_path), dtype="float32"))
    assert found.language == Layers(depth=2, width=32, mlp=128, caching=2, key_values=32) and found.vision is None


def test_an_optimizer_on_the_cpu_costs_its_memory(full: list[ModelShape]) -> None:
    here, there = memories(full, Sharding.ZERO3)[0], memories(full, Sharding.ZERO3_OFFLOAD)[0]
    assert (there.optimizer, there.host) == (0, here.optimizer) and there.weights == here.weights


def test_quantized_base_weights_count_as_such() -> None:
    name = NAMES[0]
    four = shape(name, **LORA, load_in_4bit=True)
    assert four.frozen.count == four.base.count and four.frozen.bytes < 0.2 * 4 * four.base.count


def test_frozen_parts_have_neither_gradient_nor_optimizer_state() -> None:
    model = RecipeModelConfig(model_name_or_path=NAMES[0], dtype="float32")
    frozen = model_shape(model, freeze_vision=True, published=True)
    assert frozen.frozen == model_shape(model, freeze_prefix=["model.visual."], published=True).frozen
    assert round(frozen.frozen.count / 1e9, 2) == 0.67
    memory = memory_of(frozen, demand(), Sharding.NONE, 1)
    assert memory.states * GIB == 16 * frozen.trained.count + 4 * frozen.frozen.count


def test_a_critic_costs_what_training_a_copy_or_an_adapter_does(
    full: list[ModelShape], adapted: list[ModelShape]
) -> None:
    [copied, spread] = (memory_of(full[1], demand(critic="full"), way, 8) for way in (Sharding.NONE, Sharding.FSDP2))
    assert copied.critic * GIB == 8 * spread.critic * GIB == 16 * full[1].base.count
    without = memory_of(full[1], demand(), Sharding.FSDP2, 8)
    assert spread.training - without.training == pytest.approx(spread.critic)
    assert spread.rollout - without.rollout == pytest.approx(spread.critic)
    adapter = memory_of(adapted[1], demand(critic="adapter"), Sharding.NONE, 1)
    assert adapter.critic * GIB == 16 * adapted[1].trained.count


def test_the_doctor_shows_a_critic_where_it_can_be_trained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--recipe", "search_r1/qwen2.5-7b-ppo", "--gpus", "8"]) == 0
    said = capsys.readouterr().out
    numbers = {line[:26].strip(): line[26:].split() for line in said.splitlines()}
    assert numbers["critic"] == ["113.5", "14.2"] and "zero" not in said


def test_72b_is_known_without_the_hub_and_a_stranger_is_not() -> None:
    published = {"Qwen2.5-VL-72B": 73.4, "Qwen2-VL-2B": 2.2, "Qwen2-VL-7B": 8.3, "Qwen3-VL-4B": 4.4}
    for name, billions in published.items():
        assert round(shape(f"Qwen/{name}-Instruct").base.count / 1e9, 1) == billions
    assert published_config("Qwen/Qwen2.5-VL-4B-Instruct") is published_config("me/Qwen2.5-VL-7B-Instruct") is None


def test_the_doctor_prints_a_recipes_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--recipe", "mmsearch_r1/qwen2.5-vl-7b", "--gpus", "8"]) == 0
    assert logging.getLogger("any").isEnabledFor(logging.WARNING), "others are heard as before"
    said = capsys.readouterr().out
    numbers = {line[:26].strip(): line[26:].split() for line in said.splitlines()}
    assert numbers["model and optimizer"][-5:] == ["154.5", "44.4", "17.4", "5.8", "19.3"]
    assert numbers["activations"] == ["38.8"] * 5
    assert "8 rows of 12,288 tokens, the longest that the recipe allows" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "world/grpo", "--gpus", "0"], "--gpus: 0 is no number of GPUs"),
        (["--recipe", "gone"], "recipe not found: gone"),
        (["--recipe", "world/grpo"], "model_name_or_path: there is no folder runs/demo/warm_start"),
        (["--learning_rate", "1"], "keys of a recipe need --recipe, got --learning_rate"),
    ],
)
def test_what_the_doctor_cannot_tell(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", *words]) == 1
    assert message in capsys.readouterr().err
