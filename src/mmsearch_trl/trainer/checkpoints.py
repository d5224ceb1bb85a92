"""Checkpoints: a run goes on from one to the end that it would have come to without the interruption.

transformers 5 saves Qwen-VL models under the names of their first release (`visual.…`, `model.…`) and translates them
in `from_pretrained`; its trainer's own loading does not, finds no name that it knows, warns, and goes on with the
weights that the model happened to have. A resumed run would start anew in silence. It also takes one step too many
where the checkpoint is that of the last step.
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel, Trainer
from transformers.trainer import TRAINER_STATE_NAME

from mmsearch_trl.core.boundaries import loading, writing
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.trainer.checkpoint_folder import checkpoint_to_resume
from mmsearch_trl.trainer.run_records import begin_records, check_unused


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
        UserError: from `train`, when there is no such checkpoint, or the output's folder holds another run; from it
            and `save_model`, when the folder cannot be written.
    """

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `transformers.Trainer.train`; what `resume_from_checkpoint` may be: `checkpoint_folder.py`."""
        run_dir, overwrite = Path(str(self.args.output_dir)), bool(getattr(self.args, "overwrite_output_dir", False))
        model = str(getattr(getattr(self.model, "config", None), "_name_or_path", ""))

        def prepare() -> str | None:
            checkpoint = checkpoint_to_resume(resume_from_checkpoint, run_dir)
            resume = bool(resume_from_checkpoint)
            check_unused(run_dir, checkpoint, resume=resume, overwrite=overwrite, model=model)
            begin_records(run_dir, checkpoint, overwrite=overwrite)
            return str(checkpoint) if checkpoint is not None else None

        return super().train(Ranks().on_main(prepare), *args, **kwargs)

    def _run_epoch(self, **kwargs: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  (always by name)
        """Nothing where the checkpoint was that of the last step."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """With the file that makes it complete written last, also where a folder of that name is there already."""
        if self.is_world_process_zero():
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # rank 0 declares the checkpoint complete next

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
