"""Which modules an adapter is put on, as PEFT does it."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from mmsearch_trl.recipe.model_config import RecipeModelConfig, adapter_config


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        part = {"q_proj": nn.Linear(2, 2), "v_proj": nn.Linear(2, 2), "up": nn.Linear(2, 2)}
        self.layers = nn.ModuleList([nn.ModuleDict(part)])
        self.visual = nn.ModuleDict({"q_proj": nn.Linear(2, 2)})
        self.config = {"model_type": "tiny"}

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values


ALL_Q = ["layers.0.q_proj", "visual.q_proj"]


@pytest.mark.parametrize(
    ("given", "adapted"),
    [
        (["q_proj"], ALL_Q),  # of which TRL makes a pattern that no whole name matches
        ("q_proj", ALL_Q),
        (["q_proj", "v_proj"], ["layers.0.q_proj", "layers.0.v_proj", "visual.q_proj"]),
        (["visual.q_proj"], ["visual.q_proj"]),
        ([".*visual.*q_proj"], ["visual.q_proj"]),
        (r".*\.[qv]_proj", ["layers.0.q_proj", "layers.0.v_proj", "visual.q_proj"]),
        (["up", r"visual\..*"], ["layers.0.up", "visual.q_proj"]),
        ([r"layers\.\d+\.v_proj", r"visual\.(q|k)_proj"], ["layers.0.v_proj", "visual.q_proj"]),
    ],
)
def test_targets_are_names_or_patterns_one_or_several(given: str | list[str], adapted: list[str]) -> None:
    config = RecipeModelConfig(use_peft=True, lora_target_modules=given)  # pyright: ignore[reportArgumentType]
    adapter = adapter_config(config)
    assert adapter is not None
    adapter.task_type = None
    model = get_peft_model(Tiny(), adapter)  # pyright: ignore[reportArgumentType]
    names = {name.partition(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    assert sorted(name.removeprefix("base_model.model.") for name in names) == adapted
