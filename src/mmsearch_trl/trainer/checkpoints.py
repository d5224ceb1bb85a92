"""Loads a checkpoint's full weights into a model that is training.

transformers 5 saves Qwen-VL models under the names of their first release (`visual.…`, `model.…`) and translates them
in `from_pretrained`; its trainer's own loading does not, finds no name that it knows, warns, and goes on with the
weights that the model happened to have. A resumed run would start anew in silence.
"""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel


def load_full_weights(model: Any, folder: str | Path) -> bool:
    """Load what `save_pretrained` wrote into `model`, in place; False, and nothing done, for an adapter's model.

    Raises:
        RuntimeError: The checkpoint is of another model.
    """
    if not isinstance(model, PreTrainedModel):
        return False
    saved = type(model).from_pretrained(folder, dtype=model.dtype)
    model.load_state_dict(saved.state_dict())
    return True
