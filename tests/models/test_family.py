"""A model that cannot be trained is refused in one sentence, from its configuration alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.engine.vllm_arguments import engine_arguments
from mmsearch_trl.engine.vllm_process import become_server
from mmsearch_trl.models.family import VISION_FAMILIES, check_family
from mmsearch_trl.recipe import build, start
from mmsearch_trl.recipe.model_config import RecipeModelConfig


OTHER_SIGHT = "which makes tokens of pictures or sound in another way than Qwen-VL"
OWN_CODE = "does not have (models that bring code of their own are not loaded)"
NO_WRITER = "which is no causal language model"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gemma 3": ({"model_type": "gemma3", "vision_config": {}}, OTHER_SIGHT),
    "internvl": ({"model_type": "internvl", "vision_config": {}}, OTHER_SIGHT),
    "llava": ({"model_type": "llava"}, OTHER_SIGHT),
    "glm 4.1v": ({"model_type": "glm4v", "vision_config": {}}, OTHER_SIGHT),
    "phi 4 of transformers": ({"model_type": "phi4_multimodal"}, OTHER_SIGHT),
    "qwen2-audio": ({"model_type": "qwen2_audio", "audio_config": {}}, OTHER_SIGHT),
    "qwen2.5-omni": ({"model_type": "qwen2_5_omni"}, OTHER_SIGHT),
    "phi 3.5": ({"model_type": "phi3_v", "auto_map": {"AutoConfig": "configuration_phi3_v.Phi3VConfig"}}, OWN_CODE),
    "phi 4 of the hub": ({"model_type": "phi4mm", "auto_map": {"AutoConfig": "mine.Config"}}, OWN_CODE),
    "a family of tomorrow": ({"model_type": "qwen9_vl"}, OWN_CODE),
    "no family": ({"hidden_size": 8}, OWN_CODE),
    "t5": ({"model_type": "t5"}, NO_WRITER),
    "bart": ({"model_type": "bart"}, NO_WRITER),
    "siglip": ({"model_type": "siglip"}, NO_WRITER),
}
TRAINED = [*VISION_FAMILIES, "qwen2", "qwen3", "llama", "gemma3_text", "phi3", "qwen3_next", "qwen3_5_text"]


def _model(folder: Path, config: dict[str, Any]) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    return str(folder)


@pytest.mark.parametrize("name", REFUSED)
def test_another_family_is_refused_by_name_before_its_weights(name: str, tmp_path: Path) -> None:
    config, reason = REFUSED[name]
    model = _model(tmp_path, config)
    loads = (build.load_processor, build.load_agent, lambda model: start.load_start(model, tmp_path / "run"))
    for load in loads:
        with pytest.raises(UserError) as refused:
            load(RecipeModelConfig(model_name_or_path=model))
        said = str(refused.value)
        assert f"of the family {config.get('model_type')}, " in said and reason in said, said
        assert all(title in said for title in VISION_FAMILIES.values()) and "\n" not in said and len(said) < 500


@pytest.mark.parametrize("family", TRAINED)
def test_what_can_be_trained_is_not(family: str, tmp_path: Path) -> None:
    check_family("the model", _model(tmp_path, {"model_type": family}))


def test_the_families_of_these_tests_are_those_that_are_named() -> None:
    tested = {name: build().model().config.model_type for name, build in (tiny.FAMILIES | tiny.MIXTURES).items()}
    assert {family: name.removesuffix("-moe") for name, family in tested.items()} == {
        family: title.lower() for family, title in VISION_FAMILIES.items()
    }


def test_a_model_in_memory_is_refused_as_well(tmp_path: Path) -> None:
    family = tiny.qwen3()
    model: Any = family.model()
    model.config.model_type = "glm4v"
    with pytest.raises(UserError, match=f"of the family glm4v, {OTHER_SIGHT}"):
        tiny.trainer(family, tmp_path, model=model)


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe", "qwen3_vl_moe"])
def test_what_vllm_does_not_compute_on_a_cpu_is_refused_there(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    model = _model(tmp_path, {"model_type": family})
    with pytest.raises(UserError, match=f"vLLM does not compute models of the family {family} on a CPU"):
        engine_arguments(model, {}, None)
    with pytest.raises(UserError, match="MODEL: vLLM does not compute"):
        become_server(model, [], port=1, max_lora_rank=None)
