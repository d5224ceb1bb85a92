"""Keys that say how the model is loaded and adapted: refused where nothing would come of them."""

from collections.abc import Mapping
from typing import Any

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.recipe.validation import Where


_LOADED = "model_name_or_path, model_revision, dtype, attn_implementation and load_in_4bit or load_in_8bit say how"
OF_NO_RECIPE = {
    "model_init_kwargs": f"a recipe's model is loaded otherwise: {_LOADED}",
    "trust_remote_code": "models that bring code of their own are not loaded",
}
_ADAPTER_PREFIX, _ADAPTER_KEYS = "lora_", ("use_rslora", "use_dora")
_QUANTIZATION_KEYS = ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")


def check_model_keys(values: Mapping[str, Any], where: Where) -> None:
    """Refuse keys of TRL's that recipes do not load a model by, and those of an adapter that is not made.

    Raises:
        UserError: the message names the key and where it was written.
    """
    for key, reason in OF_NO_RECIPE.items():
        if values.get(key):
            raise UserError(f"{where(key)}: {key} has no effect in a recipe: {reason}")
    for key, value in values.items():
        if value is None or value is False:
            continue
        if (key.startswith(_ADAPTER_PREFIX) or key in _ADAPTER_KEYS) and not values.get("use_peft"):
            raise UserError(
                f"{where(key)}: {key} is of an adapter, and use_peft is not true, so that all weights would be "
                "trained: set it, or leave the key out"
            )
        if key in _QUANTIZATION_KEYS and not values.get("load_in_4bit"):
            raise UserError(f"{where(key)}: {key} needs load_in_4bit: set it to true, or leave the key out")
