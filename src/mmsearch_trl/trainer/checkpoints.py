"""Checkpoints: a run goes on from one to the end that it would have come to without the interruption.

transformers 5 saves Qwen-VL models under the names of their first release (`visual.…`, `model.…`) and translates them
in `from_pretrained`; its trainer's own loading does not, finds no name that it knows, warns, and goes on with the
weights that the model happened to have. A resumed run would start anew in silence. It also takes one step too many
where the checkpoint is that of the last step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel, Trainer

from mmsearch_trl.core.boundaries import loading, writing
from mmsearch_trl.core.errors import EngineLost, RunEnded, SearchLost
from mmsearch_trl.core.redaction import redacted
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.distributed.sharding import check_sharded, keep_outputs_exact, saved_whole
from mmsearch_trl.hub.allow_list import allow_listed
from mmsearch_trl.trainer.checkpoint_folder import STATE, checkpoint_to_resume, obstacle
from mmsearch_trl.trainer.preemption import Preemption, StepEnd
from mmsearch_trl.trainer.run_records import begin_records, check_unused


# transformers loads an optimizer to the device of its rank; that of one of several on CPUs is "cpu:0", which torch
# knows as a device, and not as a place to load to.
torch.serialization.register_package(5, lambda _: None, lambda obj, place: obj if place.startswith("cpu:") else None)

_REFERENCE = "ref"
"""TRL's name of the copy of an adapter that is trained on."""
_EVALUATION_DUE = "evaluation_due"
"""In a checkpoint that was saved when its evaluation was broken off: the resumed run begins with that."""


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


@contextmanager
def _policy_alone(model: Any) -> Iterator[None]:
    """Within, PEFT saves the adapter that is trained and not TRL's copy of it, the reference: a resumed run makes that
    copy again, and transformers would resume from the copy's folder alone."""
    if not isinstance(model, PeftModel) or _REFERENCE not in model.peft_config:
        yield
        return
    names = [name for name in model.peft_config if name != _REFERENCE]
    selecting = partial(model.save_pretrained, selected_adapters=names)
    model.save_pretrained = selecting  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        del model.save_pretrained


class FullCheckpoints(Trainer):
    """Put before a TRL trainer: it resumes from, and goes back to, full checkpoints with `load_full_weights`.

    Raises:
        UserError: from `train`, when there is no such checkpoint, or the output's folder holds another run; from it
            and `save_model`, when the folder cannot be written.
        RunEnded: from `train`, when `preemption` asked for it; the last whole step is saved.
        EngineLost, SearchLost: from `train`, when it cannot go on; likewise.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.preemption = Preemption(self.abandon)
        self._step_end: StepEnd | None = None
        self._evaluation_due = False
        super().__init__(*args, **kwargs)

    def abandon(self) -> None:
        """Give up what takes long within a step; for `preemption`, from a signal's handler."""

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

        checkpoint = Ranks().on_main(prepare)
        try:
            return super().train(checkpoint, *args, **kwargs)
        except (RunEnded, EngineLost, SearchLost):
            self._save_step_end()
            raise

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers', for weights that are whole on each process or sharded (`distributed/sharding.py`)."""
        super().create_accelerator_and_postprocess()
        check_sharded()
        keep_outputs_exact(self.accelerator)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if Ranks().any(self.preemption.requested):
            raise RunEnded
        return super().training_step(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Called at the end of each step."""
        self._step_end = self._at_step_end()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        self._evaluation_due = True
        metrics = super()._evaluate(*args, **kwargs)
        self._evaluation_due = False
        return metrics

    def _at_step_end(self) -> StepEnd:
        return StepEnd.of(self.state.num_input_tokens_seen)

    def _back_to(self, step_end: StepEnd) -> None:
        step_end.restore_random()
        self.state.num_input_tokens_seen = step_end.num_input_tokens_seen

    def _save_step_end(self) -> None:
        """Save the last whole step, unless none was taken or it is saved."""
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        if self._step_end is not None and Ranks().any(obstacle(folder) is not None):
            self._back_to(self._step_end)
            self._save_checkpoint(self.model, None)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:  # which it calls by name alone
        """Nothing where the checkpoint was that of the last step; before it, the evaluation that a checkpoint owes."""
        checkpoint, first = kwargs["resume_from_checkpoint"], kwargs["epoch"] == kwargs["epochs_trained"]
        if first and checkpoint is not None and (Path(checkpoint) / _EVALUATION_DUE).exists():
            self.control.should_evaluate = True
            names = ("model", "trial", "epoch", "ignore_keys_for_eval", "start_time")
            self._maybe_log_save_evaluate(self._tr_loss, None, *(kwargs[name] for name in names))
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """With the file that makes it complete written last, also where a folder of that name is there already."""
        if self.is_world_process_zero():
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            (folder / STATE).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self._evaluation_due and self.is_world_process_zero():
            (Path(output_dir) / _EVALUATION_DUE).touch()
        self.accelerator.wait_for_everyone()  # rank 0 declares the checkpoint complete next

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if model is not None or self.is_fsdp_enabled or not load_full_weights(self.model, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if sharded or not load_full_weights(self.model, str(self.state.best_model_checkpoint)):
            super()._load_best_model()

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers', of what may be published (`hub/allow_list.py`)."""
        with allow_listed():
            return super().push_to_hub(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        with saved_whole(self.accelerator):
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        policy: Any = self.accelerator.unwrap_model(self.model)
        place = output_dir or str(self.args.output_dir)
        with self._arguments_without_secrets(), _policy_alone(policy), writing(place, SafetensorError):
            super()._save(output_dir, state_dict)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        with self._arguments_without_secrets(), allow_listed():
            super()._push_from_checkpoint(checkpoint_folder)

    @contextmanager
    def _arguments_without_secrets(self) -> Iterator[None]:
        """Within, what is saved of the arguments (`training_args.bin`) is what a stranger may see."""
        args, self.args = self.args, copy(self.args)
        vars(self.args).update(redacted(vars(args)))
        try:
            yield
        finally:
            self.args = args
