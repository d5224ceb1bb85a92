"""TRL's `SFTTrainer` with two things put right for Qwen-VL models."""

from typing import Any

from trl import SFTTrainer

from mmsearch_trl.trainer.checkpoints import load_full_weights
from mmsearch_trl.trainer.console import use_console


class MMSearchSFTTrainer(SFTTrainer):
    """Supervised training on laid-out trajectories (`demonstrations.collate`).

    * Qwen2.5-VL declares that it takes no loss arguments, for which `Trainer` averages each micro-batch by itself and
      gives short conversations several times the weight of long ones. TRL's loss counts the tokens of the whole step.
    * A run resumed from a full checkpoint loads its weights (`checkpoints.py`).
    """

    def __init__(self, *args: Any, title: str = "SFT", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True
        use_console(self, title)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if model is not None or self.is_fsdp_enabled or not load_full_weights(self.model, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if sharded or not load_full_weights(self.model, str(self.state.best_model_checkpoint)):
            super()._load_best_model()
