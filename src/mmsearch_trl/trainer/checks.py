"""Arguments that the trainer refuses before it loads or trains anything."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.errors import EngineError, UserError
from mmsearch_trl.models.family import SUPPORTED, unsupported
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.loop import Tools
from mmsearch_trl.search.runtime import SearchRuntime
from mmsearch_trl.trainer.config import MMSearchGRPOConfig


def check_arguments(model: Any, args: MMSearchGRPOConfig, extra: Mapping[str, Any]) -> None:
    """Refuse what `MMSearchGRPOTrainer` replaces, and a reference model that cannot be loaded.

    Raises:
        UserError: The message names the argument.
    """
    for name in ("tools", "rollout_func", "environment_factory"):
        if extra.get(name) is not None:
            raise UserError(f"{name} is TRL's own tool loop; MMSearchGRPOTrainer takes its tools from `search`.")
    adapted = extra.get("peft_config") is not None or hasattr(model, "peft_config")
    if args.beta != 0.0 and not adapted and not isinstance(model, str) and not model.config._name_or_path:
        raise UserError("beta > 0 loads the model again, as reference: save this model first and reload it.")


def check_model(model: Any, *, has_processor: bool, has_auxiliary_loss: bool) -> None:
    """Refuse a family that cannot be trained, the bare tokenizer of a model that sees images, and the loss that keeps
    experts balanced.

    Raises:
        UserError: That is what was given.
    """
    family = model.config.model_type
    if (reason := unsupported(family, encodes=model.config.is_encoder_decoder)) is not None:
        raise UserError(f"The model is of the family {family}, {reason}: what can be trained is {SUPPORTED}.")
    if has_auxiliary_loss:
        raise UserError("router_aux_loss_coef: the balance of experts is not trained here: set it to 0.")
    if not has_processor and model.config.get_text_config() is not model.config:
        raise UserError("MMSearchGRPOTrainer needs the processor of a vision-language model, got its tokenizer.")


def check_enough_rows(dataset: Any, args: MMSearchGRPOConfig) -> None:
    """Refuse fewer rows than a batch takes: TRL leaves out an incomplete batch and would end without a word.

    Raises:
        UserError: The message gives both numbers.
    """
    prompts = int(args.generation_batch_size or 0) // int(args.num_generations or 1)
    if isinstance(dataset, Dataset) and len(dataset) < prompts:
        raise UserError(
            f"A batch takes {prompts} questions (per_device_train_batch_size x processes x steps_per_generation / "
            f"num_generations) and the training data hold {len(dataset)}: nothing would be trained. Lower the batch "
            "size or steps_per_generation, or add data."
        )


def check_pictures(rows: Any, limits: Limits, tools: Tools | None, max_images: int | None) -> None:
    """Refuse an engine that takes fewer pictures in a prompt than rollouts will hold: it would fail them every time.

    Args:
        rows: Of the data; those of a data set of another kind are not looked at.
        tools: None where nothing is searched for.

    Raises:
        EngineError: the message gives both numbers.
    """
    if max_images is None or not isinstance(rows, Dataset) or "image_sizes" not in rows.column_names:
        return
    asked = max((len(sizes or ()) for sizes in rows["image_sizes"]), default=0)
    searches = min(limits.image_search_limit, limits.max_turns - 1) if asked and tools is not None else 0
    found = searches * tools.k[ActionKind.IMAGE_SEARCH] if isinstance(tools, SearchRuntime) else searches
    if asked + found > max_images:
        raise EngineError(
            f"vLLM takes {max_images} pictures in a prompt, and a rollout may hold {asked + found} ({asked} of the "
            f"question, {found} of image searches): raise its limit_mm_per_prompt (a server's --limit-mm-per-prompt), "
            "or lower search.image.top_k"
        )
