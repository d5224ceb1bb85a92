"""The network of a critic: the policy's model without its LM head, and a number for every token.

It is built of the policy before training, as a second tree of modules. The policy's own tree is left as it is, so that
nothing of a critic can reach a sampler, an export or a push.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.trainer.critic_config import CriticModel


class ValueModel(nn.Module):
    """What a model expects at each of its tokens, from what it has read up to there, `(n, t, 1)`."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        hidden = backbone.config.get_text_config().hidden_size
        self.backbone = backbone
        self.head = nn.Linear(hidden, 1)
        nn.init.normal_(self.head.weight, std=1 / (hidden + 1))
        nn.init.zeros_(self.head.bias)
        self._no_split_modules = backbone._no_split_modules  # what FSDP shards by

    def forward(self, **inputs: Any) -> torch.Tensor:
        hidden = self.backbone(**inputs, use_cache=False).last_hidden_state
        with torch.autocast(hidden.device.type, enabled=False):  # bfloat16 has two digits, and values want more
            weight, bias = self.head.weight.float(), self.head.bias.float()  # bfloat16 while FSDP2 computes
            return nn.functional.linear(hidden.float(), weight, bias).clone()  # a view would have FSDP2 warn


def value_model(policy: Any, kind: CriticModel, *, seed: int, checkpointing: Mapping[str, Any] | None) -> ValueModel:
    """The value model of a policy that was not trained yet.

    Args:
        policy: As a trainer has it before anything is wrapped around it; on the device that it will stay on.
        seed: Of what is drawn: every process draws the same, and none of its own random numbers are used up.
        checkpointing: Arguments of gradient checkpointing; None to do without.

    Raises:
        UserError: the policy does not allow this kind.
    """
    adapted = isinstance(policy, PeftModel)
    whole: Any = policy.get_base_model() if adapted else policy
    if kind == "adapter" and not adapted:
        raise UserError(
            "critic.model: adapter shares the frozen weights of a LoRA policy: set use_peft, or model: full"
        )
    if kind == "full" and getattr(whole, "is_quantized", False):
        raise UserError("critic.model: full trains all weights, and this model's are quantized: set it to adapter")
    # A copy of the modules of an adapted policy that holds its frozen weights themselves, and adapters of its own.
    shared = {id(p): p for p in whole.base_model.parameters() if not p.requires_grad} if kind == "adapter" else {}
    backbone: Any = deepcopy(whole.base_model, shared)
    if kind == "full":
        backbone = _merged(backbone.float().requires_grad_(True))
    with seeded(seed, policy.device):
        model = ValueModel(backbone).to(policy.device)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if checkpointing is not None:
        backbone.gradient_checkpointing_enable({"use_reentrant": False} | dict(checkpointing))
        if kind == "adapter":
            backbone.enable_input_require_grads()
    return model


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of their own, within: those of the run are as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _merged(backbone: nn.Module) -> Any:
    """Layers that compute what they and the adapters around them computed, in the places of both."""
    for name, module in list(backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            backbone.set_submodule(name, module.get_base_layer())
        elif isinstance(module, ModulesToSaveWrapper):
            backbone.set_submodule(name, module.modules_to_save[module.active_adapters[0]])
    return backbone
