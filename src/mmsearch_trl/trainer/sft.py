"""TRL's `SFTTrainer` with two things put right for Qwen-VL models."""

from dataclasses import dataclass, field
from typing import Any

from trl import SFTConfig, SFTTrainer

from mmsearch_trl.core.redaction import redacted
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.trainer.checkpoints import FullCheckpoints
from mmsearch_trl.trainer.console import use_console
from mmsearch_trl.trainer.freezing import freeze
from mmsearch_trl.trainer.options import REPLACED_SUPERVISED, check_replaced
from mmsearch_trl.trainer.vision_ranks import VisionOnAllRanks


@dataclass
class MMSearchSFTConfig(SFTConfig):
    """`trl.SFTConfig`, what stays as it is of the model, and what a run does with a folder that is used.

    Raises:
        UserError: an option has no effect on laid-out trajectories.
    """

    freeze_vision: bool = field(
        default=False, metadata={"help": "Leave the vision tower as it is, adapters in it included."}
    )
    freeze_prefix: list[str] = field(
        default_factory=list, metadata={"help": "Leave parameters as they are whose names begin so."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Remove the run that output_dir holds; without it, it is refused."}
    )

    def __post_init__(self) -> None:
        check_replaced(self, REPLACED_SUPERVISED)
        super().__post_init__()

    def to_dict(self) -> dict[str, Any]:
        """What trackers are told, without secrets."""
        return redacted(super().to_dict())


class MMSearchSFTTrainer(FullCheckpoints, SFTTrainer):
    """Supervised training on laid-out trajectories (`demonstrations.collate`).

    * Qwen2.5-VL declares that it takes no loss arguments, for which `Trainer` averages each micro-batch by itself and
      gives short conversations several times the weight of long ones. TRL's loss counts the tokens of the whole step.
    * Where a rank's micro-batch has a picture, those of the others have one, a blank one (`vision_ranks.py`).
    * A run resumed from a full checkpoint loads its weights (`checkpoints.py`).
    """

    # What TRL and transformers declare more loosely than it is here.
    args: MMSearchSFTConfig
    model: Any

    def __init__(self, *args: Any, title: str = "SFT", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        freeze(self.model, self.args.freeze_prefix, freeze_vision=self.args.freeze_vision)
        self.model_accepts_loss_kwargs = True
        self._vision = VisionOnAllRanks(self.processing_class, Ranks())
        use_console(self, title)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        blank = self._vision.blank("pixel_values" in inputs)
        if blank is not None and "pixel_values" not in inputs:
            inputs = blank.behind(inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)
