"""Checkpoints: their full weights are loaded into a model that is training, and a full disk is told in one line.

transformers 5 saves Qwen-VL models under the names of their first release (`visual.…`, `model.…`) and translates them
in `from_pretrained`; its trainer's own loading does not, finds no name that it knows, warns, and goes on with the
weights that the model happened to have. A resumed run would start anew in silence.
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel, Trainer

from mmsearch_trl.core.boundaries import loading, writing


def load_full_weights(model: Any, folder: str | Path) -> bool:
    """Load what `save_pretrained` wrote into `model`, in place; False, and nothing done, for an adapter's model.

    Raises:
        UserError: the checkpoint cannot be loaded.
        RuntimeError: The checkpoint is of another model.
    """
    if not isinstance(model, PreTrainedModel):
        return False
    with loading("the checkpoint", folder, SafetensorError):
        saved = type(model).from_pretrained(folder, dtype=model.dtype)
    model.load_state_dict(saved.state_dict())
    return True


class FullCheckpoints(Trainer):
    """Put before a TRL trainer: it resumes from, and goes back to, full checkpoints with `load_full_weights`.

    Raises:
        UserError: from `train` and `save_model`, when the output's folder cannot be written.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if model is not None or self.is_fsdp_enabled or not load_full_weights(self.model, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if sharded or not load_full_weights(self.model, str(self.state.best_model_checkpoint)):
            super()._load_best_model()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with writing(output_dir or str(self.args.output_dir), SafetensorError):
            super()._save(output_dir, state_dict)
