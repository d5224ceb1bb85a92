"""The model that training starts from: a whole one, or one with a LoRA adapter, by the recipe's `from_adapter`.

continue    the adapter is trained, its base model stays as it is; the KL term's reference is a copy of the adapter
merge       base and adapter are merged into a model in the run's folder, which is trained, whole or with a new adapter

Either way the reference is the model that the run starts from. A merged model is written, since TRL loads the
reference, and PEFT the base of an exported adapter, from where the model was loaded.
"""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

from peft import LoraConfig, PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import ModelConfig

from mmsearch_trl.core.boundaries import loading, writing
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.models.location import ADAPTER
from mmsearch_trl.recipe.build import base_of, is_adapter, load_options, load_whole, merge_adapter
from mmsearch_trl.recipe.model_config import RecipeModelConfig, adapter_config


MERGED = "merged_start"
"""Folder of a run with the merged model that it starts from."""
_SOURCE = "merged_from.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def load_start(model: RecipeModelConfig, run_dir: Path) -> PreTrainedModel | PeftModel:
    """The model that a recipe trains; every process of a run must call it.

    Raises:
        UserError: it is not there or cannot be loaded, or `from_adapter` does not fit it.
    """
    name = str(model.model_name_or_path)
    way = check_start(model)
    if way == "merge":
        name = str(Ranks().on_main(lambda: _merged(name, run_dir)))
        return load_whole(name, load_options(replace(model, model_revision="main")))
    if way is None:
        return load_whole(name, load_options(model))
    base, revision = base_of(model)
    whole = load_whole(base, load_options(model) | {"revision": revision})
    with loading("the adapter", name, SafetensorError):
        return PeftModel.from_pretrained(whole, name, revision=model.model_revision, is_trainable=True)


def check_start(model: RecipeModelConfig) -> str | None:
    """See that `from_adapter` fits the model; what it is.

    Raises:
        UserError: it is needed and missing, or says what cannot be done.
    """
    name, way = str(model.model_name_or_path), model.from_adapter
    if not is_adapter(model):
        if way is not None:
            raise UserError(f"from_adapter: {name} is a whole model, with no {ADAPTER}: leave it out")
        return None
    if way is None:
        raise UserError(
            f"model_name_or_path: {name} is a LoRA adapter, and training starts from a whole model: set from_adapter "
            "to merge (into its base model) or to continue (to train the adapter on), or name its base model"
        )
    if way == "merge" and not Path(name).is_dir():
        raise UserError(f"from_adapter: merge reads the adapter in a folder: download {name} to one and name that")
    if way == "continue" and not model.use_peft:
        raise UserError("from_adapter: continue trains the adapter alone: set use_peft: true, or from_adapter: merge")
    if way == "continue" and is_deepspeed_zero3_enabled():
        raise UserError(
            "from_adapter: continue loads weights into whole layers, which ZeRO-3 has cut up: use fsdp2 or zero2, or "
            "from_adapter: merge"
        )
    return way


def new_adapter(model: RecipeModelConfig) -> LoraConfig | None:
    """The adapter that training puts on the model; None where all is trained, or an adapter is trained on."""
    return None if model.from_adapter == "continue" else adapter_config(model)


def trained_adapter(model: RecipeModelConfig) -> PeftConfig | None:
    """The adapter that is trained, new or not; None where all weights are.

    Raises:
        UserError: the adapter to be trained on cannot be read.
    """
    if model.from_adapter != "continue":
        return adapter_config(model)
    return _saved(model)


def _saved(model: ModelConfig) -> PeftConfig:
    name = str(model.model_name_or_path)
    with loading("the adapter", name):
        adapter = PeftConfig.from_pretrained(name, revision=model.model_revision)
    adapter.inference_mode = False  # as which PEFT saves it
    return adapter


def _merged(adapter: str, run_dir: Path) -> Path:
    """The merged model's folder, written unless an earlier start of the same run wrote it."""
    folder = run_dir / MERGED
    source = {"adapter": adapter, "sha256": _digest(Path(adapter))}
    try:
        if json.loads((folder / _SOURCE).read_text(encoding="utf-8")) == source:
            return folder
    except (OSError, ValueError):
        pass  # it is not there, or was cut off
    with writing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        run_dir.mkdir(parents=True, exist_ok=True)
        merge_adapter(adapter, folder)
        (folder / _SOURCE).write_text(json.dumps(source), encoding="utf-8")
    return folder


def _digest(adapter: Path) -> str:
    digest = hashlib.sha256()
    for name in (ADAPTER, *_ADAPTER_WEIGHTS):
        if (adapter / name).is_file():
            with (adapter / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
