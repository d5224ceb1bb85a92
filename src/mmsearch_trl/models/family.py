"""Which models can be trained, told from a configuration alone: before weights, and without a model's own code.

Rollouts and loss rest on how Qwen-VL models see: an image is as many tokens as its processor says beforehand, patches
come with the grid they lie in, and positions follow from ids and grids (M-RoPE). A family is listed here once its
log-probs in a padded batch are those of each sequence alone.
"""

from collections.abc import Mapping

from mmsearch_trl.core.boundaries import loading
from mmsearch_trl.core.errors import UserError


VISION_FAMILIES: Mapping[str, str] = {
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL",
    "qwen3_5": "Qwen3.5",
    "qwen3_5_moe": "Qwen3.5",
}
"""By `model_type`; mixtures of experts have one of their own."""
SUPPORTED = f"{', '.join(dict.fromkeys(VISION_FAMILIES.values()))}, or a causal language model of transformers"
_NOT_ON_CPU = ("qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
"""There, vLLM 0.31 computes linear attention in bf16 alone, without adapters, and came to NaN; it does not load the
mixtures that transformers saves."""


def check_family(what: str, name: str, revision: str | None = None) -> None:
    """Refuse a model whose rollouts or loss would be wrong.

    Args:
        what: Such as `model_name_or_path`; stands before the message.

    Raises:
        UserError: the family cannot be trained, or the configuration cannot be read.
    """
    from transformers import PreTrainedConfig

    with loading("the model", name):
        config = PreTrainedConfig.get_config_dict(name, revision=revision)[0]
    family = str(config.get("model_type"))
    if (reason := unsupported(family, encodes=config.get("is_encoder_decoder"))) is not None:
        raise UserError(f"{what}: {name} is of the family {family[:80]}, {reason}: what can be trained is {SUPPORTED}")


def unsupported(family: str, *, encodes: bool | None = None) -> str | None:
    """Why a model cannot be trained; None where it can.

    Args:
        family: `model_type` of its configuration.
        encodes: Whether it is an encoder and a decoder; None is what is usual in its family.
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    )

    if family in VISION_FAMILIES:
        return None
    if family not in CONFIG_MAPPING:
        return (
            f"which transformers {transformers.__version__} does not have (models that bring code of their own are "
            "not loaded)"
        )
    if family in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES:
        return "which makes tokens of pictures or sound in another way than Qwen-VL"
    if encodes is None:
        encodes = getattr(CONFIG_MAPPING[family], "is_encoder_decoder", False)
    if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or encodes:
        return "which is no causal language model"
    return None


def check_vllm_on_cpu(what: str, name: str) -> None:
    """Refuse a model that vLLM does not compute on a CPU; one that is not on this machine yet is not looked at.

    Raises:
        UserError: it is one.
    """
    from transformers import PreTrainedConfig

    try:
        family = PreTrainedConfig.get_config_dict(name, local_files_only=True)[0].get("model_type")
    except OSError:
        return
    if family in _NOT_ON_CPU:
        raise UserError(
            f"{what}: vLLM does not compute models of the family {family} on a CPU: leave use_vllm out, or use a GPU"
        )
